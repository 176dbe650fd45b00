"""The README against reality."""

import os
import re
from pathlib import Path

import pytest

from pipeline import config as config_module
from pipeline.cli.verbs import app
from pipeline.records import STAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERBS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
VERBS |= {group.name for group in app.registered_groups if group.name}
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_every_verb_it_uses_exists() -> None:
    used = {command.split()[1] for command in COMMANDS if command.startswith("retort ")}
    used |= {verb for listed in re.findall(r"`retort ([a-z|]+) ", README) for verb in listed.split("|")}
    assert used
    assert used <= VERBS


def test_every_stage_is_a_verb() -> None:
    assert (
        set(STAGES)
        | {"init", "run", "plan", "serve", "check", "show", "sample", "status", "verify", "compare", "report"}
        == VERBS
    )


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)h][^)]*)\)", README))))
def test_every_file_it_links_to_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(pipeline/[\w/]+\.py)`", README))))
def test_every_module_it_names_is_there(name: str) -> None:
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("script", ["quickstart", "test", "check", "install"])
def test_scripts_are_there_and_can_be_run(script: str) -> None:
    assert os.access(ROOT / "scripts" / script, os.X_OK)


def test_every_setting_it_names_exists() -> None:
    known = {name for name, _ in config_module.fields()} | {"train.lora.r"}
    known |= {name.rpartition(".")[0] for name in known}  # sections
    sections = "teacher|prepare|generate|filter|student|train|evaluate|export"
    for setting in re.findall(rf"`((?:{sections})\.[\w.]+?)(?:=[^`]*)?`", README):
        if setting.rpartition(".")[2] not in ("py", "json") and not setting.startswith("teacher.engine."):
            assert setting in known, setting


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"retort (check|plan|run|export) configs", c)])
def test_the_configs_and_overrides_it_shows_are_valid(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    monkeypatch.chdir(ROOT)
    _, _, config, *overrides = shlex.split(command)
    config_module.load(Path(config), overrides)

"""Every README against reality: commands, settings, links, files."""

import os
import re
import shlex
from pathlib import Path

import pytest
import typer

from pipeline import config as config_module
from pipeline.cli.app import app
from pipeline.records import STAGES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = {
    str(p.relative_to(ROOT)): p
    for p in (README, *ROOT.glob("pipeline/**/README.md"), *ROOT.glob("scripts/**/README.md"))
}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
ROOMS = sorted({path.parent for path in ROOT.glob("pipeline/*/*.py")} - {ROOT / "pipeline/data"})
VERBS = set(vars(typer.main.get_command(app))["commands"])
TEACHES = ("bash", "json", "jsonl", "yaml", "jinja", "python", "")


def commands() -> list[str]:
    blocks = [block for text in TEXTS.values() for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
    return [
        shlex.join(words)
        for block in blocks
        for line in block.splitlines()
        if (words := shlex.split(line, comments=True))
    ]


def test_the_first_page_is_short() -> None:
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_room_has_a_page_that_names_each_of_its_files(room: Path) -> None:
    page = (room / "README.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 200
    own_pages = [inner.parent for inner in room.glob("*/README.md")]
    for file in room.rglob("*.py"):
        place = next((inner for inner in own_pages if file.is_relative_to(inner)), room)
        if file != file.with_name("__init__.py") or file.parent == place:
            text = (place / "README.md").read_text(encoding="utf-8")
            assert f"`{file.relative_to(place)}`" in text or file.stat().st_size < 400, file


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_it_lists_is_there(name: str) -> None:
    for listed in re.findall(r"^- (`[^\n]*?):", TEXTS[name], re.MULTILINE):
        for file in re.findall(r"`([\w/]+\.py)`", listed):
            assert (PAGES[name].parent / file).is_file(), file
    for module in re.findall(r"`((?:pipeline|scripts|tests)/[\w/]+\.py)`", TEXTS[name]):
        assert (ROOT / module).is_file(), module


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    for target in re.findall(r"\]\(([^)h][^)]*)\)", TEXTS[name]):
        place, _, heading = target.partition("#")
        path = PAGES[name].parent / place if place else PAGES[name]
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_every_verb_exists_and_every_stage_is_one() -> None:
    used = {command.split()[1] for command in commands() if command.startswith("retort ")}
    used |= {verb for text in TEXTS.values() for verb in re.findall(r"`retort ([a-z]+)", text)}
    others = {"init", "run", "plan", "serve", "check", "show", "sample", "status", "verify", "compare", "report"}
    assert used <= VERBS
    assert {*STAGES, *others} == VERBS


@pytest.mark.parametrize("script", ["quickstart", "test", "check", "install"])
def test_scripts_are_there_and_can_be_run(script: str) -> None:
    assert os.access(ROOT / "scripts" / script, os.X_OK)


@pytest.mark.parametrize("name", TEXTS)
def test_every_setting_it_names_exists(name: str) -> None:
    known = {setting for setting, _ in config_module.fields()} | {"train.lora.r", "train.lora.bits"}
    for _ in range(3):  # sections, and their sections
        known |= {setting.rpartition(".")[0] for setting in known}
    sections = "teacher|prepare|generate|filter|student|train|evaluate|export|privacy|safety"
    for setting in re.findall(rf"`((?:{sections})\.[\w.]+?)(?:=[^`]*)?`", TEXTS[name].partition("## CHANGELOG")[0]):
        if setting.rpartition(".")[2] not in ("py", "json") and not setting.startswith("teacher.engine."):
            assert setting in known or setting.startswith("privacy.presidio"), setting


@pytest.mark.parametrize(
    "command", [c for c in commands() if re.match(r"retort (check|plan|run|serve|export|prepare|filter) configs", c)]
)
def test_the_configs_and_overrides_it_shows_are_valid(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, _, config, *arguments = shlex.split(command)
    config_module.load(Path(config), [each for each in arguments if re.match(r"[a-z]", each) and "=" in each])


@pytest.mark.parametrize("name", TEXTS)
def test_code_blocks_say_what_they_are(name: str) -> None:
    fences = re.findall(r"^```(.*)$", TEXTS[name], re.MULTILINE)
    assert len(fences) % 2 == 0
    assert set(fences) <= set(TEACHES)

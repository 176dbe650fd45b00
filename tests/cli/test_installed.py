"""Retort from a wheel, in an empty folder: what it ships is found there, and `retort init` begins a run."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline import config as config_module
from pipeline.cli import init, named_files
from pipeline.config import Prepare, Risks
from pipeline.config.judge import Judge
from pipeline.data import shipped
from pipeline.errors import UserError
from pipeline.evaluate import risks
from pipeline.judge import questions
from pipeline.text import contamination

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel's files are unpacked, as pip does it."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"  # a copy, as the build leaves files there
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("pipeline", "prompts", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(out), str(source)], check=True, capture_output=True)
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        archive.extractall(out / "site")
    return out / "site"


def retort(wheel: Path, folder: Path, *arguments: str) -> str:
    """What the command prints, run from the wheel's files in this folder."""
    its_own = f"import pipeline; assert pipeline.__file__.startswith({str(wheel)!r}), pipeline.__file__"
    code = f"{its_own}; from pipeline.__main__ import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(wheel), "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_wheel_holds_every_file_that_is_shipped(wheel: Path) -> None:
    for folder in ("prompts", "configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file():
                assert (wheel / "pipeline/data" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    data = [path for path in (ROOT / "pipeline").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    lacking = [path for path in data if not (wheel / path.relative_to(ROOT)).is_file()]
    assert not [path for path in lacking if path.name != "README.md"]


def test_a_run_begins_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    said = retort(wheel, tmp_path, "init", "mine")
    assert "cd mine && retort run retort.yaml" in said
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["prompts.jsonl", "retort.yaml"]
    assert "valid; `retort run retort.yaml` writes to runs/first" in retort(
        wheel, tmp_path / "mine", "check", "retort.yaml"
    )
    assert "runs/quickstart" in retort(wheel, tmp_path, "check", "configs/quickstart.yaml")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "retort.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"retort\.yaml is there already, .*retort init FOLDER"):
        init.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["retort.yaml"]
    assert (tmp_path / "retort.yaml").read_text() == "mine"


def test_a_file_of_ones_own_goes_before_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.find("prompts/tasks.jsonl") == shipped.DATA / "prompts/tasks.jsonl"
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/tasks.jsonl").write_text("")
    own = ["prompts/tasks.jsonl", "prompts/none.jsonl", "/prompts/risks.jsonl", "configs"]
    for path in [*own, "start/retort.yaml", "prompts/../start/retort.yaml"]:  # nor are files for init to be named
        assert shipped.find(path) == Path(path)


def test_a_fingerprint_is_the_same_wherever_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        sets = contamination.content_hashes(Prepare().decontaminate, "prepare.decontaminate")
        seen.append((sets, risks.fingerprint(Risks()), questions.template_hashes(Judge())))
    assert seen[0] == seen[1]
    assert set(seen[0][0]) == {f"prompts/{name}.jsonl" for name in ("chat_eval", "tasks", "risks")}


@pytest.mark.parametrize("path", sorted(path.name for path in (ROOT / "configs").iterdir()))
def test_a_shipped_config_and_its_files_are_found_from_anywhere(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["prepare.synthesis.num_prompts=1", "evaluate.judge.url=http://127.0.0.1:1", "evaluate.judge.model=it"]
    config = config_module.load(Path("configs") / path, overrides)
    named_files.check(config)
    assert config_module.load(ROOT / "configs" / path, overrides) == config


def test_the_config_to_start_from_names_settings_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = config_module.load(Path("retort.yaml"))
    named_files.check(config)
    assert [source.path for source in config.prepare.sources] == ["prompts.jsonl", "prompts/seeds.jsonl"]

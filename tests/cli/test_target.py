"""Which run a verb works on: the folder that was named, whatever its config says; or the one that a config names."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.fabricated_run import make
from typer.testing import CliRunner

from pipeline import config as config_module
from pipeline.cli import app as cli_app
from pipeline.cli import preflight, stages, target
from pipeline.errors import UserError
from pipeline.records import STAGES
from pipeline.run.files import read_json, write_json
from pipeline.run.rundir import RunDir

VERBS = ("run", "plan", "check", *STAGES)


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli_app.app, [*map(str, arguments)], env={"COLUMNS": "160", "TERM": "dumb"})


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A whole run, `runs/trial`, that says so in its config."""
    return make(tmp_path / "runs").path


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A copy of it elsewhere, whose config still names the original."""
    copied = tmp_path / "elsewhere" / "again"
    shutil.copytree(original, copied)
    assert "name: trial" in (copied / "config.yaml").read_text()
    return copied


def is_named_by(run: Path, *given: str | Path) -> bool:
    path, *overrides = map(str, given)
    loaded = target.load(Path(path), overrides)
    assert target.existing(Path(path), overrides).path.resolve() == run.resolve()
    return loaded.run_path.resolve() == run.resolve() == loaded.config.run_path.resolve()


def test_a_copy_is_found_by_its_folder_and_by_its_config(original: Path, copy: Path) -> None:
    assert is_named_by(copy, copy)
    assert is_named_by(copy, copy / "config.yaml")
    assert is_named_by(original, original / "config.yaml")


def test_a_run_that_was_renamed_or_moved_is_found_where_it_is(original: Path, tmp_path: Path) -> None:
    renamed = original.rename(original.parent / "renamed")
    assert is_named_by(renamed, renamed / "config.yaml")
    moved = shutil.move(renamed, tmp_path / "moved")
    assert is_named_by(Path(moved), moved)
    assert not original.parent.joinpath("trial").exists()


@pytest.mark.parametrize("name", ["a copy", "trial (2)", "-odd"])
def test_a_folder_may_have_a_name_that_no_run_is_given(original: Path, name: str) -> None:
    odd = original.rename(original.parent / name)
    assert target.load(odd / "config.yaml", []).run_path == odd
    assert target.existing(odd).path == odd


@pytest.mark.parametrize("given", [".", "config.yaml", "../again", "./config.yaml", "../../elsewhere/again"])
def test_a_relative_path_is_the_same_run(copy: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    assert is_named_by(copy, given)


def test_a_relative_runs_dir_is_from_where_the_user_stands_and_a_folder_is_not(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (original / "config.yaml").read_text().replace(f"runs_dir: {original.parent}", "runs_dir: runs")
    (original / "config.yaml").write_text(text)
    (tmp_path / "mine.yaml").write_text("name: trial\nruns_dir: runs\n")
    monkeypatch.chdir(tmp_path)
    assert is_named_by(original, "mine.yaml")
    monkeypatch.chdir("/")
    assert is_named_by(original, original / "config.yaml")


def test_links_are_followed_to_the_run(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(copy)
    (tmp_path / "mine.yaml").symlink_to(copy / "config.yaml")
    assert is_named_by(copy, tmp_path / "latest")
    assert is_named_by(copy, tmp_path / "latest/config.yaml")
    assert is_named_by(copy, tmp_path / "mine.yaml")


def test_links_that_go_in_a_circle_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="no such config file or run folder"):
        target.load(tmp_path / "a", [])


def test_a_name_or_a_runs_dir_is_another_run_with_the_settings_of_this_one(copy: Path, tmp_path: Path) -> None:
    beside = target.load(copy, ["name=b", "train.epochs=7"])
    assert (beside.run_path, beside.config.train.epochs) == (copy.parent / "b", 7)
    assert target.load(copy, [f"runs_dir={tmp_path}/new"]).run_path == tmp_path / "new/again"
    assert target.load(copy, ["train.epochs=7"]).run_path == copy


def test_a_config_of_the_users_own_is_no_run_whatever_it_is_called(original: Path, tmp_path: Path) -> None:
    mine = tmp_path / "project"
    mine.mkdir()
    (mine / "config.yaml").write_text(f"name: trial\nruns_dir: {original.parent}\n")
    assert is_named_by(original, mine / "config.yaml")
    with pytest.raises(UserError, match=r"project: no run here .*give .*project/config\.yaml$"):
        target.load(mine, [])


def test_a_run_without_the_first_line_of_its_config_is_still_one(copy: Path) -> None:
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().split("\n", 1)[1])
    assert is_named_by(copy, copy / "config.yaml")


def test_a_damaged_config_does_not_hide_a_run_from_the_verbs_that_read(copy: Path) -> None:
    (copy / "config.yaml").write_text("[")
    assert target.existing(copy).path == copy
    assert invoke("status", copy / "config.yaml").exit_code == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_works_on_the_folder_it_was_given(
    verb: str, original: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked_on: set[Path] = set()

    def in_child(stage: str, config: config_module.Config, run_dir: RunDir) -> int:
        worked_on.update((run_dir.path, config.run_path))
        return 0

    monkeypatch.setattr(stages, "_in_child", in_child)
    monkeypatch.setattr(preflight, "check", lambda config, run_dir: worked_on.add(run_dir.path))
    for given in (copy, copy / "config.yaml"):
        done = invoke(verb, given)
        assert done.exit_code == 0, done.exception
    assert worked_on == {copy}


@pytest.mark.parametrize(
    "words", [["status"], ["show"], ["sample", "--reason", "kept"], ["filter", "--explain", "prompt1-0"], ["verify"]]
)
def test_every_verb_that_reads_takes_a_config_with_overrides_too(
    words: list[str], original: Path, tmp_path: Path
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("train: {epochs: 3}\n")
    by_folder = invoke(words[0], original, *words[1:])
    for given in ([original / "config.yaml"], [config, "name=trial", f"runs_dir={original.parent}"]):
        by_config = invoke(words[0], *given, *words[1:])
        assert (by_config.exit_code, by_config.output) == (by_folder.exit_code, by_folder.output)
        assert str(by_config.exception) == str(by_folder.exception)


def test_show_tells_an_id_from_an_override(original: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    by_config = invoke("show", tmp_path / "mine.yaml", "name=trial", f"runs_dir={original.parent}", "prompt2-0")
    assert by_config.exit_code == 0
    assert by_config.output == invoke("show", original, "prompt2-0").output
    assert "give prompt2-0 or prompt3-0" in str(invoke("show", original, "prompt2-0", "prompt3-0").exception)


def test_a_report_of_several_takes_each_in_its_own_way(original: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    runs = target.several([str(copy), str(tmp_path / "mine.yaml"), "name=trial", f"runs_dir={original.parent}"])
    assert [run.path for run in runs] == [copy, original]
    assert [run.path for run in target.several([str(copy), f"{copy}/config.yaml"])] == [copy]


def test_a_folder_with_an_equals_sign_in_its_path_is_no_override(tmp_path: Path, monkeypatch: Any) -> None:
    run = make(tmp_path / "lr=1").path
    monkeypatch.chdir(tmp_path)
    assert target.several(["lr=1/trial"])[0].path.resolve() == run
    assert not target.is_override("lr=1/trial")


def test_a_run_that_is_not_there_yet_is_told_with_how_to_begin_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"runs_dir: {tmp_path}/runs\n")
    with pytest.raises(UserError, match=rf"runs/mine: no run here yet; begin it: retort run {tmp_path}/mine\.yaml$"):
        target.existing(tmp_path / "mine.yaml")
    assert not (tmp_path / "runs").exists()


def test_the_command_to_paste_is_of_the_copy(copy: Path) -> None:
    command = RunDir(copy).command("filter", "--fresh").split()
    assert command == ["retort", "filter", f"{copy}/config.yaml", "--fresh"]
    assert is_named_by(copy, command[2])


def made_with(folder: Path, stage: str, **settings: Any) -> None:
    """Let a stage of the run have been done with these settings."""
    path = folder / stage / "manifest.json"
    manifest = read_json(path)
    manifest["fingerprint"] |= {key.replace("__", "."): value for key, value in settings.items()}
    write_json(path, manifest)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epochs=2", "train was done with another train.epochs (1.0, not 2.0)"),
        ("train.lora.r=8", "train was done with another train.lora (None, not {'r': 8"),
        ("student.num_layers=3", "train was done with another student.num_layers (None, not 3)"),
    ],
)
def test_a_setting_of_an_earlier_stage_is_not_ignored(original: Path, override: str, told: str) -> None:
    made_with(original, "train", train__epochs=1.0, train__lora=None, student__num_layers=None)
    said = str(invoke("evaluate", original, override).exception)
    assert told in said
    assert f"do it again (retort train --fresh {original} {override}), or give the run a new name" in said


def test_a_setting_that_an_earlier_stage_was_done_with_is_taken(original: Path) -> None:
    made_with(original, "train", train__epochs=1.0)
    for word in ("train.epochs=1", "evaluate.chat_items=3", "generate.price_per_hour=2"):
        target.check_overrides("evaluate", target.load(original, [word]))
    manifest = read_json(original / "train/manifest.json")
    manifest["accepted"] = [{"key": "train.epochs", "was": 1.0, "is": 2.0}]
    write_json(original / "train/manifest.json", manifest)
    target.check_overrides("evaluate", target.load(original, ["train.epochs=2"]))

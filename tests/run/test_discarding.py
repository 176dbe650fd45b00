"""What is discarded is told first: more than a minute's work, or a judge's verdicts, go by a second word alone."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fabricated_run import make
from typer.testing import CliRunner

from pipeline.cli import app as cli_app
from pipeline.cli import stage, stages, verbs
from pipeline.config import validate
from pipeline.errors import UnsureError
from pipeline.run import discarding
from pipeline.run.files import read_json
from pipeline.run.rundir import RunDir

HOUR_S = 3600.0


def took(run_dir: RunDir, stage: str, elapsed_s: float) -> None:
    path = run_dir.stage_path(stage) / "manifest.json"
    path.write_text(json.dumps({**read_json(path), "elapsed_s": elapsed_s}))


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def run_dir(run_dir: RunDir) -> RunDir:
    """A whole run, whose answers took twelve minutes and whose training took an hour."""
    took(run_dir, "generate", 12 * 60)
    took(run_dir, "train", HOUR_S)
    return run_dir


@pytest.fixture
def quick(tmp_path: Path) -> RunDir:
    """One that took seconds."""
    return make(tmp_path)


def test_what_would_go_is_told_stage_by_stage_with_what_it_holds_and_how_long_it_took(run_dir: RunDir) -> None:
    before = files_in(run_dir.path)
    with pytest.raises(UnsureError) as refused:
        run_dir.discard_from("generate")
    assert "--fresh would discard generate (6 answers, 12 min 0 s), filter (6 decisions, " in str(refused.value)
    assert "train (10 steps, 1 h 0 min)" in str(refused.value)
    assert "1 h 12 min of work; give --fresh twice (--fresh --fresh)" in str(refused.value)
    assert files_in(run_dir.path) == before


def test_whoever_is_sure_discards_and_a_minute_needs_no_second_word(run_dir: RunDir) -> None:
    RunDir(run_dir.path, is_sure=True).discard_from("generate")
    assert not run_dir.stage_path("train").exists()
    took(run_dir, "prepare", 59)
    run_dir.discard_from("prepare")
    assert not run_dir.stage_path("prepare").exists()


def test_a_stage_that_was_stopped_is_counted_by_what_it_has_committed(run_dir: RunDir) -> None:
    folder = run_dir.stage_path("generate")
    (folder / "manifest.json").unlink()
    started = read_json(folder / "started.json")
    (folder / "started.json").write_text(json.dumps({**started, "began_s": time.time() - 90}))
    assert str(discarding.of_folder(folder)).startswith("generate (6 answers, 1 min 3")
    (run_dir.stage_path("train") / "manifest.json").unlink()
    (run_dir.stage_path("train") / "checkpoints/student/checkpoint-150").mkdir(parents=True)
    assert "train (150 steps" in str(discarding.of_folder(run_dir.stage_path("train")))


def test_a_damaged_manifest_or_shard_does_not_stop_the_count(run_dir: RunDir) -> None:
    folder = run_dir.stage_path("generate")
    (folder / "manifest.json").write_text("{")
    (folder / "responses-00001.parquet").write_bytes(b"PAR1")
    assert "generate (3 answers" in str(discarding.of_folder(folder))


def test_verdicts_of_a_judge_are_never_discarded_at_a_first_word(quick: RunDir) -> None:
    (quick.stage_path("evaluate") / "verdicts.jsonl").write_text("{}\n" * 40)
    with pytest.raises(UnsureError, match=r"evaluate \(4 arms, 40 verdicts of a judge, |evaluate \(.*40 verdicts of"):
        quick.discard_from("filter")
    assert quick.stage_path("filter").exists()


def test_fresh_at_changed_settings_asks_too(run_dir: RunDir) -> None:
    config = validate({"name": "trial", "runs_dir": str(run_dir.path.parent)}, "test")
    before = files_in(run_dir.path)
    with pytest.raises(UnsureError, match=r"would discard prepare .*, generate \(6 answers, 12 min"):
        RunDir(run_dir.path, "changed").begin("prepare", config, {"teacher.model": "other"})
    assert files_in(run_dir.path) == before


def test_a_file_lost_from_a_folder_does_not_take_an_hours_training_with_it(run_dir: RunDir) -> None:
    folder = run_dir.stage_path("train")
    (folder / "student").mkdir()
    names = ("student/config.json", "student/model.safetensors")
    for name in names:
        (folder / name).write_text("{}")
    records = [{"name": name, "bytes": 2, "sha256": "0"} for name in names]
    manifest = {**run_dir.manifest("train"), "files": records}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / names[0]).unlink()
    config = validate({"name": "trial", "runs_dir": str(run_dir.path.parent)}, "test")
    with pytest.raises(
        UnsureError, match=r"student/config\.json is missing: .*discard .*/student and repeat 1 h 0 min of work;"
    ):
        run_dir.begin("train", config, manifest["fingerprint"])
    assert (folder / names[1]).exists()
    assert run_dir.is_done("train")
    sure = RunDir(run_dir.path, is_sure=True).begin("train", config, manifest["fingerprint"])
    assert not sure.complete
    assert not (folder / "student").exists()


# --- the command


def invoke(*arguments: str | Path, **how: Any) -> Any:
    return CliRunner().invoke(cli_app.app, [*map(str, arguments)], **how)


def test_a_command_that_nobody_watches_refuses_and_deletes_nothing(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files_in(run_dir.path)
    monkeypatch.chdir(Path(verbs.__file__).parents[2])
    assert invoke("filter", run_dir.path, "--fresh").exit_code == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "--fresh would discard filter (6 decisions" in said
    assert "train (10 steps, 1 h 0 min)" in said
    assert "give --fresh twice" in said
    assert files_in(run_dir.path) == before


@pytest.mark.parametrize(("answer", "code", "tries"), [("y", 0, [False, True]), ("n", 1, [False]), ("", 1, [False])])
def test_whoever_sits_there_is_asked(
    answer: str, code: int, tries: list[bool], quick: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def in_child(stage: str, config: object, run_dir: RunDir) -> int:
        asked.append(run_dir.is_sure)
        return 0 if run_dir.is_sure else stages.UNSURE

    monkeypatch.setattr(stages, "_in_child", in_child)
    monkeypatch.setattr(stages, "_can_ask", lambda: True)
    assert invoke("filter", quick.path, "--fresh", input=f"{answer}\n").exit_code == code
    assert asked == tries


@pytest.mark.parametrize(("words", "fresh", "is_sure"), [([], "no", False), (["--fresh"], "always", False)])
def test_fresh_twice_is_sure(
    words: list[str], fresh: str, is_sure: bool, quick: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, bool]] = []
    monkeypatch.setattr(stages, "_in_child", lambda stage, config, run: given.append((run.fresh, run.is_sure)) or 0)
    invoke("filter", quick.path, *words)
    invoke("filter", quick.path, "--fresh", "--fresh")
    assert given == [(fresh, is_sure), ("always", True)]


# --- a corpus over another


def aged(folder: Path, seconds: float) -> None:
    """As if its first file had been written so long before its last."""
    oldest = min(files_in(folder), key=lambda path: path.stat().st_mtime)
    times = oldest.stat().st_mtime - seconds
    os.utime(oldest, (times, times))


def test_a_corpus_that_took_long_or_was_worked_on_is_not_replaced_at_once(quick: RunDir) -> None:
    corpus = quick.path / "corpus"
    (corpus / "data").mkdir(parents=True)
    pq.write_table(pa.table({"n": [1, 2, 3]}), corpus / "data/train-00000.parquet")
    (corpus / "README.md").write_text("mine")
    aged(corpus, 600)
    refused = invoke("export", "corpus", quick.path)
    assert "this would discard corpus (3 rows, 10 min 0 s); give --fresh twice" in str(refused.exception)
    assert (corpus / "README.md").read_text() == "mine"
    replaced = invoke("export", "corpus", quick.path, "--fresh", "--fresh")
    assert replaced.exit_code == 0, replaced.exception
    assert (corpus / "README.md").read_text() != "mine"
    assert invoke("export", "corpus", quick.path).exit_code == 0


def test_several_processes_are_not_started_to_refuse(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_launch", lambda *_: pytest.fail("processes were started"))
    config = validate({"name": "trial", "train": {"launch": ["--cpu"]}}, "test")
    with pytest.raises(UnsureError, match=r"--fresh would discard train \(10 steps, 1 h 0 min\)"):
        stage._do("train", stage.StageOrder(config=config, path=run_dir.path, fresh="always"), is_handed_on=False)

"""A run on disk: what is committed stays, what is not leaves no trace, and other settings are never mixed in."""

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.failing import fail_with

from pipeline import config as config_module
from pipeline.config import Config, validate
from pipeline.errors import UserError
from pipeline.records import STAGES
from pipeline.run import rundir
from pipeline.run.commit import Stage
from pipeline.run.files import read_json
from pipeline.run.manifest import SCHEMA_VERSION
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_answers, read_shards, shard_paths

SETTINGS = {"generate.temperature": 0.7, "generate.k": 64}
TABLE = pa.table({"n": [1, 2, 3], "text": ["a", "b", "c"]})


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "trial")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return validate({"name": "trial", "runs_dir": str(tmp_path)}, "test")


@pytest.fixture
def stage(run_dir: RunDir, config: Config) -> Stage:
    return run_dir.begin("generate", config, SETTINGS)


@pytest.fixture
def finished(stage: Stage, run_dir: RunDir) -> RunDir:
    """A run whose generate is done: two shards of three rows."""
    finish(stage)
    return run_dir


def finish(stage: Stage) -> None:
    names = ["responses-00000.parquet", "responses-00001.parquet"]
    for name in names:
        stage.commit(TABLE, name)
    stage.finish([stage.path / name for name in names], {"responses": 6}, k=64)


def shard(run_dir: RunDir, number: int = 0) -> Path:
    return run_dir.path / f"generate/responses-{number:05d}.parquet"


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refusal(run_dir: RunDir, config: Config, fingerprint: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        run_dir.begin("generate", config, fingerprint)
    return str(caught.value)


# --- committing


def write_half(table: pa.Table, path: Path, **_: object) -> None:
    path.write_bytes(b"PAR1 half of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_committed_table_is_there_whole_and_nothing_else_is(stage: Stage) -> None:
    stage.commit(TABLE, "responses-00000.parquet")
    assert pq.read_table(stage.path / "responses-00000.parquet").equals(TABLE)
    assert files_in(stage.path) == {"started.json", "responses-00000.parquet"}


@pytest.mark.parametrize(
    ("target", "replacement"),
    [
        ("pyarrow.parquet.write_table", write_half),
        ("os.fsync", fail_with(errno.ENOSPC)),
        ("os.fsync", fail_with(errno.EDQUOT)),
    ],
    ids=["half written", "full at fsync", "quota at fsync"],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, target: str, replacement: Callable[..., None]
) -> None:
    stage.commit(TABLE, "responses-00000.parquet")
    before = files_in(stage.path)
    monkeypatch.setattr(target, replacement)
    with pytest.raises(UserError, match=r"responses-00001\.parquet: no disk space .* free some and run the same"):
        stage.commit(TABLE, "responses-00001.parquet")
    assert files_in(stage.path) == before
    assert pq.read_table(stage.path / "responses-00000.parquet").equals(TABLE)


def test_shards_are_those_committed_in_order(stage: Stage) -> None:
    for number in (10, 2, 0):
        stage.commit(TABLE, f"responses-{number:05d}.parquet")
    (stage.path / ".responses-00001.parquet.tmp").write_bytes(b"half")
    (stage.path / "other-00001.parquet").write_bytes(b"")
    assert stage.shards("responses") == [f"responses-{number:05d}.parquet" for number in (0, 2, 10)]


# --- beginning and finishing


def test_notes_are_lines_that_readers_of_shards_pass_over(stage: Stage, run_dir: RunDir) -> None:
    finish(stage)
    num_shards = len(list(read_shards(run_dir, stage.name)))
    assert stage.notes() == []
    stage.note("left_out.jsonl", {"text": "Füße"})
    stage.note("left_out.jsonl", {"text": "a\nb"})
    assert (stage.path / "left_out.jsonl").read_bytes() == '{"text": "Füße"}\n{"text": "a\\nb"}\n'.encode()
    shards = [stage.path / name for name in stage.shards("responses")]
    stage.finish([*shards, *stage.notes()], {})
    assert [record["name"] for record in run_dir.manifest(stage.name)["files"]][-1] == "left_out.jsonl"
    assert len(list(read_shards(run_dir, stage.name))) == len(shard_paths(run_dir, stage.name)) == num_shards
    (stage.path / "left_out.jsonl").write_text("altered")
    with pytest.raises(UserError, match=r"left_out\.jsonl: damaged"):
        run_dir.check_files(stage.name)


def test_a_new_stage_is_begun_and_not_complete(stage: Stage) -> None:
    assert not stage.complete
    assert read_json(stage.path / "started.json")["fingerprint"] == SETTINGS


def test_a_finished_stage_is_found_complete(finished: RunDir, config: Config) -> None:
    assert finished.begin("generate", config, SETTINGS).complete


def test_an_interrupted_stage_goes_on_with_its_shards(stage: Stage, run_dir: RunDir, config: Config) -> None:
    stage.commit(TABLE, "responses-00000.parquet")
    again = run_dir.begin("generate", config, SETTINGS)
    assert not again.complete
    assert again.shards("responses") == ["responses-00000.parquet"]


def test_a_finished_stage_that_lost_a_file_is_not_complete(finished: RunDir, config: Config) -> None:
    shard(finished).unlink()
    again = finished.begin("generate", config, SETTINGS)
    assert not again.complete
    assert again.shards("responses") == ["responses-00001.parquet"]


def test_the_manifest_says_what_was_written(finished: RunDir) -> None:
    manifest = finished.manifest("generate")
    assert manifest["schema_version"] == SCHEMA_VERSION
    assert (manifest["stage"], manifest["fingerprint"]) == ("generate", SETTINGS)
    assert (manifest["counts"], manifest["k"]) == ({"responses": 6}, 64)
    assert {"torch", "transformers", "vllm"} <= manifest["versions"].keys()
    for number, record in enumerate(manifest["files"]):
        data = shard(finished, number).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        assert record == {"name": shard(finished, number).name, "bytes": len(data), "rows": 3, "sha256": sha256}


def test_the_config_in_the_run_folder_is_the_one_it_was_made_with(
    stage: Stage, run_dir: RunDir, config: Config
) -> None:
    assert config_module.load(run_dir.path / "config.yaml") == config


def test_a_later_stage_leaves_the_settings_of_an_earlier_one_as_they_were_run(run_dir: RunDir, config: Config) -> None:
    run_dir.begin("prepare", config, SETTINGS).finish([], {})
    other = validate({**config.model_dump(), "prepare": {"held_out_frac": 0.5}, "generate": {"k": 8}}, "test")
    run_dir.begin("generate", other, SETTINGS)
    written = config_module.load(run_dir.path / "config.yaml")
    assert (written.prepare, written.generate) == (config.prepare, other.generate)


def test_what_filter_looked_for_is_in_the_config_and_what_was_done_about_prompts_stays(
    run_dir: RunDir, config: Config
) -> None:
    run_dir.begin("prepare", config, SETTINGS).finish([], {})
    privacy = {"kinds": ["email"], "phone_regions": [], "presidio": {"model": "blank:en"}, "answers": "drop"}
    safety = {"words": None, "guard_url": "http://127.0.0.1:1", "guard_model": "g", "max_answer_score": 0.5}
    safety |= {"classifier": "./c", "classifier_revision": "v1", "unsafe_labels": ["toxic"]}
    prompts = {"privacy": privacy | {"prompts": "off"}, "safety": safety | {"max_prompt_score": 0.1}}
    run_dir.begin("filter", validate({**config.model_dump(), **prompts}, "test"), SETTINGS)
    written = config_module.load(run_dir.path / "config.yaml")
    expected = validate({**config.model_dump(), "privacy": privacy, "safety": safety}, "test")
    assert (written.privacy, written.safety) == (expected.privacy, expected.safety)
    fields = {*type(expected.privacy).model_fields, *type(expected.safety).model_fields}
    assert fields == {*privacy, *safety, "prompts", "max_prompt_score"}  # none is forgotten


def test_the_config_of_a_run_that_was_copied_names_the_copy(run_dir: RunDir, config: Config, tmp_path: Path) -> None:
    run_dir.begin("prepare", config, SETTINGS).finish([], {})
    copied = validate({**config.model_dump(), "name": "copied", "runs_dir": str(tmp_path)}, "test")
    shutil.copytree(run_dir.path, tmp_path / "copied")
    RunDir(tmp_path / "copied").begin("generate", copied, SETTINGS)
    assert config_module.load(tmp_path / "copied/config.yaml").run_path == tmp_path / "copied"


def test_a_stage_that_has_not_finished_is_named_with_the_command(stage: Stage, run_dir: RunDir) -> None:
    told = rf"generate has not finished; run it first: retort generate {run_dir.path}/config\.yaml$"
    with pytest.raises(UserError, match=told):
        run_dir.manifest("generate")


def test_the_command_is_of_this_run_even_where_it_is_a_copy(stage: Stage, run_dir: RunDir, tmp_path: Path) -> None:
    finish(stage)
    copied = RunDir(tmp_path / "other place" / "again")
    shutil.copytree(run_dir.path, copied.path)
    said = shlex.split(copied.command("filter", "--fresh"))
    assert (said[:2], said[-1]) == (["retort", "filter"], "--fresh")
    assert config_module.load(Path(said[2]), said[3:-1]).run_path == copied.path
    (copied.path / "config.yaml").write_text("[")
    assert copied.command("filter") == RunDir(tmp_path / "none").command("filter") == "retort filter CONFIG"


def test_a_damaged_manifest_is_named_with_how_to_mend_it(finished: RunDir, config: Config) -> None:
    path = finished.path / "generate/manifest.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match=r"manifest\.json: damaged .*; delete the folder .*/generate"):
        finished.manifest("generate")
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        finished.begin("generate", config, SETTINGS)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"fingerprint": {}, "accepted": []}'])
def test_json_that_is_no_manifest_is_damaged_too(finished: RunDir, config: Config, text: str) -> None:
    (finished.path / "generate/manifest.json").write_text(text)
    for act in (lambda: finished.manifest("generate"), lambda: finished.begin("generate", config, SETTINGS)):
        with pytest.raises(UserError, match=r"manifest\.json: damaged \(.*\); delete the folder .*/generate"):
            act()


def test_lost_files_are_those_missing_or_of_another_size(finished: RunDir) -> None:
    assert finished.lost_files("generate") == []
    first, second = (finished.path / "generate" / f"responses-0000{n}.parquet" for n in (0, 1))
    first.unlink()
    cut(second)
    assert finished.lost_files("generate") == [first.name, second.name]


# --- other settings


@pytest.mark.parametrize("until", ["stage", "finished"], ids=["interrupted", "finished"])
def test_other_settings_are_refused_with_each_key_and_each_way_out(
    until: str, run_dir: RunDir, config: Config, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(until)
    if until == "stage":
        made.commit(TABLE, "responses-00000.parquet")
    before = files_in(run_dir.path)
    message = refusal(run_dir, config, {**SETTINGS, "generate.temperature": 1.0})
    assert "generate.temperature was 0.7, is 1.0" in message
    assert "generate.k" not in message
    for way_out in ("name=", "--fresh"):
        assert way_out in message
    # what is half done can't be kept: the rest would be made with other settings
    assert ("--accept generate.temperature" in message) == (until == "finished")
    assert files_in(run_dir.path) == before


def test_a_stage_that_has_committed_nothing_takes_other_settings(stage: Stage, run_dir: RunDir, config: Config) -> None:
    again = run_dir.begin("generate", config, {**SETTINGS, "generate.temperature": 1.0})
    assert again.fingerprint["generate.temperature"] == 1.0


def test_a_stage_in_one_piece_starts_anew_where_it_has_not_finished(
    stage: Stage, run_dir: RunDir, config: Config
) -> None:
    stage.commit(TABLE, "responses-00000.parquet")
    again = run_dir.begin("generate", config, {**SETTINGS, "generate.temperature": 1.0}, in_one_piece=True)
    assert again.shards("responses") == []


def test_shards_without_the_settings_that_made_them_are_not_taken_over(
    stage: Stage, run_dir: RunDir, config: Config
) -> None:
    stage.commit(TABLE, "responses-00000.parquet")
    (stage.path / "started.json").unlink()
    with pytest.raises(UserError, match=r"responses-00000\.parquet but not the settings"):
        run_dir.begin("generate", config, {**SETTINGS, "generate.temperature": 1.0})


def test_what_was_remembered_is_in_the_manifest_of_a_later_try(stage: Stage, run_dir: RunDir, config: Config) -> None:
    stage.commit(TABLE, "responses-00000.parquet")
    stage.remember(teacher_dtype="float32")
    again = run_dir.begin("generate", config, SETTINGS)
    again.finish([again.path / "responses-00000.parquet"], {"responses": 3}, k=64)
    assert run_dir.manifest("generate")["teacher_dtype"] == "float32"


def stopped_after(stage: Stage, seconds: float) -> None:
    """Have a try that committed a shard have begun so long before it: no test waits for hours."""
    stage.commit(TABLE, "responses-00000.parquet")
    path = stage.path / "started.json"
    started = read_json(path)
    path.write_text(json.dumps({**started, "began_s": started["began_s"] - seconds}))


def test_the_time_of_a_run_is_that_of_all_tries(stage: Stage, run_dir: RunDir, config: Config) -> None:
    stopped_after(stage, 36_000)
    stopped_after(run_dir.begin("generate", config, SETTINGS), 1800)
    again = run_dir.begin("generate", config, SETTINGS)
    again.began -= 100
    again.finish([again.path / "responses-00000.parquet"], {"responses": 3})
    manifest = run_dir.manifest("generate")
    assert manifest["elapsed_s"] == pytest.approx(37_900, abs=5)
    assert manifest["num_tries"] == 3


def test_the_pause_between_two_tries_is_not_counted(stage: Stage, run_dir: RunDir, config: Config) -> None:
    stage.commit(TABLE, "responses-00000.parquet")
    started = read_json(stage.path / "started.json")
    (stage.path / "started.json").write_text(json.dumps({**started, "began_s": started["began_s"] - 5000}))
    for path in stage.path.iterdir():
        earlier = path.stat().st_mtime - 4000
        os.utime(path, (earlier, earlier))
    assert run_dir.begin("generate", config, SETTINGS).elapsed_s() == pytest.approx(1000, abs=5)
    started = read_json(stage.path / "started.json")  # a try that was stopped at once adds nothing
    assert run_dir.begin("generate", config, SETTINGS).elapsed_s() == pytest.approx(1000, abs=5)


def test_a_stage_that_lost_a_file_took_the_time_of_making_it_twice(finished: RunDir, config: Config) -> None:
    path = finished.path / "generate/manifest.json"
    path.write_text(json.dumps({**read_json(path), "elapsed_s": 700.0}))
    shard(finished).unlink()
    again = finished.begin("generate", config, SETTINGS)
    again.began -= 20
    finish(again)
    manifest = finished.manifest("generate")
    assert (manifest["elapsed_s"], manifest["num_tries"]) == (pytest.approx(720, abs=5), 2)


def test_of_a_try_by_another_version_the_time_is_not_known(stage: Stage, run_dir: RunDir, config: Config) -> None:
    stopped_after(stage, 36_000)
    path = stage.path / "started.json"
    path.write_text(json.dumps({k: v for k, v in read_json(path).items() if k not in ("began_s", "num_tries")}))
    again = run_dir.begin("generate", config, SETTINGS)
    stopped_after(again, 60)
    again = run_dir.begin("generate", config, SETTINGS)
    assert again.num_tries is None
    assert again.elapsed_s() == pytest.approx(60, abs=5)


def test_what_is_discarded_is_not_counted(stage: Stage, run_dir: RunDir, config: Config) -> None:
    stopped_after(stage, 36_000)
    again = RunDir(run_dir.path, fresh="always", is_sure=True).begin("generate", config, SETTINGS)
    assert (again.num_tries, round(again.elapsed_s())) == (1, 0)


def test_a_setting_that_came_or_went_is_another_setting(finished: RunDir, config: Config) -> None:
    assert "generate.new was null, is 1" in refusal(finished, config, {**SETTINGS, "generate.new": 1})
    assert "generate.k was 64, is null" in refusal(finished, config, {"generate.temperature": 0.7})


def test_a_refusal_leaves_the_runs_config_as_it_was(finished: RunDir, config: Config) -> None:
    before = (finished.path / "config.yaml").read_text()
    other = config.model_copy(update={"generate": config.generate.model_copy(update={"temperature": 0.1})})
    refusal(finished, other, {**SETTINGS, "generate.temperature": 0.1})
    assert (finished.path / "config.yaml").read_text() == before


def accepting(run_dir: RunDir, *keys: str) -> RunDir:
    return RunDir(run_dir.path, accept=keys)


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("generate.temprature", "; did you mean generate.temperature?"),
        ("temperature", "; did you mean generate.temperature?"),
        ("generate.temperature.low", "; did you mean generate.temperature?"),
        ("teacher.engine.dtype", "; did you mean teacher.engine?"),
        ("filter.min_tokens", "; choose from generate.k, "),
    ],
)
def test_what_a_stage_has_no_setting_by_can_not_be_accepted(finished: RunDir, key: str, known: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--accept {key}: no such setting of generate{known}")):
        accepting(finished, key).check_accept(["generate"])


@pytest.mark.parametrize(
    "key", ["generate.temperature", "generate.file.new.jsonl", "filter.min_tokens", "teacher.model"]
)
def test_settings_of_any_of_the_stages_can_be_accepted(run_dir: RunDir, config: Config, key: str) -> None:
    stage = run_dir.begin("generate", config, {**SETTINGS, "generate.file.old.jsonl": "a"})
    stage.finish([], {})
    accepting(run_dir, key).check_accept(["generate", "filter"])


def test_an_accepted_change_is_recorded_and_not_asked_for_again(finished: RunDir, config: Config) -> None:
    changed = {**SETTINGS, "generate.temperature": 1.0}
    assert accepting(finished, "generate.temperature").begin("generate", config, changed).complete
    manifest = finished.manifest("generate")
    assert manifest["accepted"] == [{"key": "generate.temperature", "was": 0.7, "is": 1.0}]
    assert manifest["fingerprint"] == SETTINGS
    assert finished.begin("generate", config, changed).complete
    assert finished.manifest("generate") == manifest


def test_what_was_accepted_is_one_value_of_one_key(finished: RunDir, config: Config) -> None:
    changed = {**SETTINGS, "generate.temperature": 1.0}
    accepting(finished, "generate.temperature").begin("generate", config, changed)
    assert "generate.temperature was 0.7, is 2.0" in refusal(finished, config, {**changed, "generate.temperature": 2.0})
    message = refusal(accepting(finished, "generate.temperature"), config, {**changed, "generate.k": 8})
    assert "generate.k was 64, is 8" in message
    assert "--accept generate.temperature" not in message


def test_changes_accepted_one_after_the_other_all_stay_accepted(finished: RunDir, config: Config) -> None:
    changed = {**SETTINGS, "generate.k": 8}
    accepting(finished, "generate.k").begin("generate", config, changed)
    changed["generate.temperature"] = 1.0
    accepting(finished, "generate.temperature").begin("generate", config, changed)
    assert [change["key"] for change in finished.manifest("generate")["accepted"]] == list(SETTINGS)[::-1]
    assert finished.begin("generate", config, changed).complete


def test_a_lost_shard_is_not_made_anew_with_settings_that_were_only_accepted(finished: RunDir, config: Config) -> None:
    """The others were made at another temperature: a shard from now on would be mixed in among them."""
    changed = {**SETTINGS, "generate.temperature": 1.0}
    accepting(finished, "generate.temperature").begin("generate", config, changed)
    shard(finished).unlink()
    assert "generate.temperature" in refusal(finished, config, changed)


def test_going_back_to_the_first_settings_needs_no_accepting(finished: RunDir, config: Config) -> None:
    accepting(finished, "generate.k").begin("generate", config, {**SETTINGS, "generate.k": 8})
    assert finished.begin("generate", config, SETTINGS).complete


def test_a_change_is_not_accepted_half_way(stage: Stage, run_dir: RunDir, config: Config) -> None:
    stage.commit(pa.table({"response_id": ["a-0"]}), "responses-00000.parquet")
    message = refusal(accepting(run_dir, "generate.k"), config, {**SETTINGS, "generate.k": 8})
    assert "not whole" in message
    assert "--fresh" in message


@pytest.fixture
def whole(run_dir: RunDir, config: Config) -> RunDir:
    """A run with every stage done and a report."""
    for name in STAGES:
        run_dir.begin(name, config, SETTINGS).finish([], {})
    (run_dir.path / "report.html").write_text("page")
    return run_dir


def done(run_dir: RunDir) -> list[str]:
    return [name for name in STAGES if (run_dir.stage_path(name) / "manifest.json").exists()]


def test_fresh_discards_a_changed_stage_and_what_follows_from_it(whole: RunDir, config: Config) -> None:
    again = RunDir(whole.path, fresh="changed").begin("filter", config, {**SETTINGS, "generate.k": 8})
    assert not again.complete
    assert done(whole) == ["prepare", "generate"]
    assert not (whole.path / "report.html").exists()
    assert again.fingerprint["generate.k"] == 8


def test_fresh_keeps_a_stage_whose_settings_are_the_same(whole: RunDir, config: Config) -> None:
    assert RunDir(whole.path, fresh="changed").begin("filter", config, SETTINGS).complete
    assert done(whole) == list(STAGES)


def test_a_stage_that_lost_its_manifest_takes_nothing_of_the_others_with_it(whole: RunDir, config: Config) -> None:
    (whole.path / "filter/manifest.json").unlink()
    assert not whole.begin("filter", config, SETTINGS, in_one_piece=True).complete
    assert done(whole) == [name for name in STAGES if name != "filter"]
    assert (whole.path / "report.html").exists()


def test_a_finished_stage_says_what_it_did_and_later_that_it_is_done(
    stage: Stage, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(stage)
    assert "generate: responses 6 → " in capsys.readouterr().err.replace("\n", "")
    stage.run.begin("generate", config, SETTINGS)
    assert capsys.readouterr().err == "generate: done already\n"


def test_fresh_for_one_stage_does_it_again_whatever_its_settings(whole: RunDir, config: Config) -> None:
    assert not RunDir(whole.path, fresh="always").begin("filter", config, SETTINGS).complete
    assert done(whole) == ["prepare", "generate"]


def test_fresh_discards_nothing_where_an_input_is_damaged(finished: RunDir, config: Config) -> None:
    finished.begin("filter", config, SETTINGS).finish([], {})
    cut(finished.path / "generate/responses-00001.parquet")
    with pytest.raises(UserError, match=r"responses-00001\.parquet: damaged"):
        RunDir(finished.path, fresh="always").begin("filter", config, SETTINGS)
    assert finished.manifest("filter")


def test_fresh_gets_out_of_a_lost_file_under_accepted_settings(finished: RunDir, config: Config) -> None:
    other = {**SETTINGS, "generate.k": 8}
    accepting(finished, "generate.k").begin("generate", config, other)
    (finished.path / "generate/responses-00001.parquet").unlink()
    assert "do it again with --fresh" in refusal(finished, config, other)
    again = RunDir(finished.path, fresh="changed").begin("generate", config, other)
    assert not again.complete
    assert again.shards("responses") == []


def test_a_file_of_a_finished_stage_that_was_cut_short_is_named(finished: RunDir, config: Config) -> None:
    cut(finished.path / "generate/responses-00001.parquet")
    with pytest.raises(UserError, match=r"responses-00001\.parquet: damaged"):
        finished.begin("generate", config, SETTINGS)
    assert finished.manifest("generate")


def test_a_folder_that_lost_a_file_is_made_anew_as_a_whole(run_dir: RunDir, config: Config) -> None:
    stage = run_dir.begin("train", config, SETTINGS)
    files = [
        stage.path / name for name in ("student/config.json", "student/model.safetensors", "untrained/config.json")
    ]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    stage.finish(files, {})
    files[1].unlink()
    assert not run_dir.begin("train", config, SETTINGS).complete
    assert not (stage.path / "student").exists()
    assert files[2].exists()


@pytest.mark.parametrize("text", ["{", "[1]", "x"])
def test_a_damaged_config_in_the_run_folder_is_named(run_dir: RunDir, config: Config, text: str) -> None:
    run_dir.path.mkdir()
    (run_dir.path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: damaged"):
        run_dir.begin("prepare", config, SETTINGS)


def test_the_teachers_settings_are_those_it_generated_with(run_dir: RunDir, config: Config) -> None:
    run_dir.begin("prepare", config, SETTINGS).finish([], {})
    changed = config.model_copy(update={"teacher": config.teacher.model_copy(update={"engine": {"seed": 1}})})
    run_dir.begin("generate", changed, SETTINGS)
    assert config_module.load(run_dir.path / "config.yaml").teacher.engine == {"seed": 1}


@pytest.mark.parametrize("stage_name", STAGES)
def test_discarding_takes_a_stage_and_all_after_it(whole: RunDir, stage_name: str) -> None:
    whole.discard_from(stage_name)
    assert not list(whole.path.glob(".discarded*"))
    assert done(whole) == list(STAGES[: STAGES.index(stage_name)])


# --- reading


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_shards_are_read_in_order_with_the_columns_asked_for(finished: RunDir) -> None:
    tables = list(read_shards(finished, "generate", ["n"]))
    assert [table.column_names for table in tables] == [["n"], ["n"]]
    assert [table.column("n").to_pylist() for table in tables] == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_shard_is_named_with_how_to_mend_it(finished: RunDir, damage: Callable[[Path], object]) -> None:
    damage(shard(finished, 1))
    tables = read_shards(finished, "generate")
    assert next(tables).equals(TABLE)
    told = "missing .* do" if damage is Path.unlink else "damaged .* delete it and do"
    with pytest.raises(UserError, match=rf"responses-00001\.parquet: {told} `retort generate "):
        next(tables)


def test_a_damaged_file_that_is_no_parquet_is_found_too(run_dir: RunDir, config: Config) -> None:
    stage = run_dir.begin("train", config, SETTINGS)
    (stage.path / "weights.bin").write_bytes(b"weights")
    stage.finish([stage.path / "weights.bin"], {})
    run_dir.check_files("train")
    (stage.path / "weights.bin").write_bytes(b"weightz")
    with pytest.raises(UserError, match=r"weights\.bin: damaged"):
        run_dir.check_files("train")


def decided(run_dir: RunDir, config: Config, about: str) -> None:
    """A filter that kept every second row of answers with this hash."""
    stage = run_dir.begin("filter", config, {"input.generate": about})
    names = ["decisions-00000.parquet", "decisions-00001.parquet"]
    for name in names:
        stage.commit(pa.table({"kept": [True, False, True], "masked_spans": [None, [1], None]}), name)
    stage.finish([stage.path / name for name in names], {})


def test_answers_are_read_with_what_filter_decided_about_each(finished: RunDir, config: Config) -> None:
    decided(finished, config, finished.output_hash("generate"))
    pairs = [(a.to_pydict(), kept.to_pylist()) for a, kept in read_answers(finished, ["n"])]
    assert pairs == [({"n": [1, 2, 3], "masked_spans": [None, [1], None]}, [True, False, True])] * 2


def test_decisions_about_other_answers_are_refused(finished: RunDir, config: Config) -> None:
    decided(finished, config, "hash of others")
    with pytest.raises(UserError, match=r"decided about other answers .*retort filter .*--fresh"):
        next(read_answers(finished, ["n"]))


def test_the_input_of_the_next_stage_is_the_content_of_all_files(finished: RunDir, config: Config) -> None:
    before = finished.output_hash("generate")
    finish(finished.begin("generate", config, SETTINGS))
    assert finished.output_hash("generate") == before
    stage = finished.begin("generate", config, SETTINGS)
    stage.commit(TABLE.slice(0, 2), shard(finished, 1).name)
    stage.finish([shard(finished, 0), shard(finished, 1)], {})
    assert finished.output_hash("generate") != before


# --- one process at a time


@pytest.fixture
def holder(run_dir: RunDir) -> Iterator[subprocess.Popen[str]]:
    """Another process that works on the run."""
    program = (
        "import sys; from pathlib import Path; from pipeline.run.rundir import RunDir\n"
        "with RunDir(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(run_dir.path)]
    root = Path(rundir.__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_on_a_run_is_refused(run_dir: RunDir, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError, match="trial: another process is working on this run"), run_dir.lock():
        pytest.fail("two processes hold the run")


def test_a_process_that_was_killed_holds_nothing(run_dir: RunDir, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with run_dir.lock():
        assert run_dir.path.is_dir()


def test_a_run_that_can_not_be_written_to_is_told(run_dir: RunDir) -> None:
    (run_dir.path / ".lock").mkdir(parents=True)
    with pytest.raises(UserError, match=r"trial: the run can't be written to \("), run_dir.lock():
        pytest.fail("nothing was locked")


def test_the_lock_is_free_again_after_a_failure(run_dir: RunDir) -> None:
    with pytest.raises(RuntimeError), run_dir.lock():
        raise RuntimeError
    with run_dir.lock():
        assert (run_dir.path / ".lock").exists()


# --- what made it


def test_a_manifest_is_plain_json_that_other_tools_read(finished: RunDir) -> None:
    text = (finished.path / "generate/manifest.json").read_text(encoding="utf-8")
    assert json.loads(text) == finished.manifest("generate")


def test_a_refusal_names_what_differs_as_deep_as_it_lies() -> None:
    from pipeline.run.changes import _differences

    was = [{"path": "a.jsonl", "licence": "mit"}, {"path": "b.jsonl", "licence": None}]
    now_is = [{"path": "a.jsonl", "licence": "mit"}, {"path": "b.jsonl", "licence": "cc0-1.0"}]
    assert _differences("prepare.sources", was, now_is) == [("prepare.sources.1.licence", None, "cc0-1.0")]
    assert _differences("a", [1], [1, 2]) == [("a", [1], [1, 2])]
    assert _differences("a", 1, {"b": 1}) == [("a", 1, {"b": 1})]

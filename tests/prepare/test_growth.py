"""A finished prepare takes more prompts, and keeps those that it has."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.run import verify
from pipeline.run.files import file_hash
from pipeline.run.rundir import RunDir

TOPICS = ["otters", "bridges", "violins", "glaciers", "taxes", "bakeries", "comets", "looms", "castles", "tides"]
LETTER = "Please write a short and friendly letter to my neighbour about the old tree between our two gardens"


def asked(*numbers: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Tell me about {TOPICS[n % 10]}, part {n}."} for n in numbers]


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def hashes(prepared: Any) -> dict[str, str]:
    return {path.name: file_hash(path) for path in sorted((prepared.run_dir.path / "prepare").glob("*.parquet"))}


def parts(prepared: Any) -> str:
    return "".join(row["messages"][0]["content"][-2] for row in prepared.rows())


def test_lines_added_anywhere_come_after_what_is_there(prepared: Any) -> None:
    prepared.do(prepared.lines(*asked(1, 2, 3)), held_out_frac=0.3, shard_prompts=2)
    before, rows = hashes(prepared), prepared.rows()
    counts = prepared.do(prepared.lines(*asked(9, 1, 2, 8, 3, 7)), held_out_frac=0.3, shard_prompts=2)
    after = hashes(prepared)
    assert {name: after[name] for name in before} == before
    assert prepared.rows()[:3] == rows
    assert parts(prepared) == "123987"
    assert counts["prompts"] == 6
    manifest = prepared.run_dir.manifest("prepare")
    assert manifest["parts"] == [3, 3]
    assert [record["rows"] for record in manifest["files"] if "rows" in record] == [2, 1, 2, 1]
    assert "6 prompts" in dict(verify.run(prepared.run_dir))["prepare"]


def test_a_source_adds_to_another_as_often_as_one_likes(prepared: Any) -> None:
    first = prepared.lines(*asked(1, 2))
    prepared.do(first)
    old = prepared.run_dir.output_hash("prepare")
    prepared.do(first, prepared.lines(*asked(3), name="b.jsonl"))
    middle = prepared.run_dir.output_hash("prepare")
    prepared.do(prepared.lines(*asked(5), name="c.jsonl"), first, prepared.lines(*asked(3, 4), name="b.jsonl"))
    assert parts(prepared) == "12354"
    manifest = prepared.run_dir.manifest("prepare")
    assert (manifest["parts"], manifest["grown_from"]) == ([2, 1, 2], [old, middle])
    licensed = {part["source"][-7:]: part["prompts"] for part in manifest["licences"]["sources"]}
    assert licensed == {"a.jsonl": 2, "b.jsonl": 2, "c.jsonl": 1}


def test_a_dataset_folder_grows_too(prepared: Any) -> None:
    (prepared.folder / "corpus").mkdir()
    source = {"dataset": str(prepared.folder / "corpus")}
    prepared.lines(*asked(1, 2), name="corpus/train.jsonl")
    prepared.do(source)
    prepared.lines(*asked(3, 1, 2), name="corpus/train.jsonl")
    prepared.do(source)
    assert parts(prepared) == "123"


def test_the_files_of_a_folder_stay_one_source(prepared: Any) -> None:
    (prepared.folder / "rows").mkdir()
    source = {"path": str(prepared.folder / "rows")}
    prepared.lines(*asked(1, 2), name="rows/a.jsonl")
    prepared.do(source)
    prepared.lines(*asked(3), name="rows/b.jsonl")
    prepared.do(source)
    assert parts(prepared) == "123"
    [licensed] = prepared.run_dir.manifest("prepare")["licences"]["sources"]
    assert (licensed["source"], licensed["prompts"]) == (source["path"], 3)


@pytest.mark.parametrize(("less", "more"), [({"limit": 2}, {"limit": 4}), ({"weight": 0.4}, {"weight": 0.9})])
def test_more_of_a_source_is_taken_and_what_was_taken_stays(
    prepared: Any, less: dict[str, float], more: dict[str, float]
) -> None:
    source = prepared.lines(*asked(*range(10)))
    num = prepared.do(source | less)["prompts"]
    before = parts(prepared)
    assert prepared.do(source | more)["prompts"] > num > 0
    assert parts(prepared).startswith(before)


def test_a_run_that_has_grown_is_done_already(prepared: Any, capsys: pytest.CaptureFixture[str]) -> None:
    prepared.do(prepared.lines(*asked(1, 2)))
    more = prepared.lines(*asked(1, 2, 3))
    prepared.do(more)
    before = (prepared.run_dir.path / "prepare/manifest.json").read_bytes()
    prepared.do(more)
    assert (prepared.run_dir.path / "prepare/manifest.json").read_bytes() == before
    assert "prepare: done already" in capsys.readouterr().err


def test_what_nearly_repeats_a_prompt_of_the_run_is_left_out_and_what_repeats_one_counts_once(prepared: Any) -> None:
    prepared.do(prepared.lines({"prompt": LETTER}, *asked(1)))
    counts = prepared.do(prepared.lines({"prompt": f"{LETTER}."}, *asked(1, 1, 2), {"prompt": LETTER}))
    assert (counts["prompts"], counts["duplicates"], counts["near_duplicates"]) == (3, 1, 1)
    twins = (prepared.run_dir.path / "prepare/near_duplicates.jsonl").read_text()
    assert prepared.rows()[0]["prompt_id"] in twins


def test_a_try_that_stops_changes_nothing(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared.do(prepared.lines({"prompt": LETTER}, {"prompt": f"{LETTER}."}, *asked(1, 2)))
    folder = prepared.run_dir.path / "prepare"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    more = prepared.lines({"prompt": LETTER}, {"prompt": f"{LETTER}!"}, *asked(1, 2, 3))
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.run.commit.Stage.grow", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared.do(more)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    verify.run(prepared.run_dir)
    assert prepared.do(more)["prompts"] == 4
    assert not (folder / ".added").exists()


def test_a_try_that_stops_between_two_files_is_made_good(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared.do(prepared.lines({"prompt": LETTER}, {"prompt": f"{LETTER}."}, *asked(1, 2)))
    prepared.do(prepared.lines({"prompt": LETTER}, *asked(1, 2, 3)))
    more = prepared.lines({"prompt": LETTER}, {"prompt": f"{LETTER}!"}, *asked(1, 2, 3, 4))
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.run.commit.Stage.finish", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared.do(more)
    assert prepared.do(more)["prompts"] == 5
    assert len({row["prompt_id"] for row in prepared.rows()}) == len(prepared.rows()) == 5
    assert prepared.run_dir.manifest("prepare")["parts"] == [3, 1, 1]
    verify.run(prepared.run_dir)


def test_what_is_done_afresh_does_not_grow(prepared: Any) -> None:
    prepared.do(prepared.lines(*asked(1, 2, 3)))
    prepared.run_dir = RunDir(prepared.run_dir.path, fresh="changed")
    prepared.do(prepared.lines(*asked(5, 1)))
    assert parts(prepared) == "51"


def test_a_prompt_stays_that_its_source_has_lost(prepared: Any, capsys: pytest.CaptureFixture[str]) -> None:
    prepared.do(prepared.lines(*asked(1, 2, 3)))
    assert prepared.do(prepared.lines(*asked(1, 3, 4)))["prompts"] == 4
    assert re.search(r"grows by 1 prompt; the 3 [^~]*the sources lack 1 of them", capsys.readouterr().err)


def test_other_data_is_no_growth(prepared: Any) -> None:
    prepared.do(prepared.lines(*asked(1, 2, 3)))
    before = hashes(prepared)
    with pytest.raises(UserError, match=r"prepare\.sources lacks 2 of the 3 prompts .*new name.*--fresh"):
        prepared.do(prepared.lines(*asked(1, 5, 6, 7)))
    assert hashes(prepared) == before


def test_more_prompts_than_are_wanted_are_refused_with_what_to_do(prepared: Any) -> None:
    prepared.do(prepared.lines(*asked(1, 2, 3)), max_prompts=2)
    more = prepared.lines(*asked(4, 1, 2, 3))
    with pytest.raises(UserError, match=r"prepare\.max_prompts is 2: raise it .*--accept prepare\.file\."):
        prepared.do(more, max_prompts=2)
    assert prepared.do(more, max_prompts=3)["prompts"] == 3
    assert parts(prepared) == "124"


@pytest.mark.parametrize("change", [{"system": "Be brief."}, {"licence": "mit"}, {"prompt": "other"}])
def test_a_source_that_is_read_in_another_way_is_refused_by_name(prepared: Any, change: dict[str, Any]) -> None:
    prepared.do(prepared.lines(*asked(1, 2)))
    more = prepared.lines(*asked(1, 2, 3)) | change
    with pytest.raises(UserError, match=rf"prepare\.sources\.0\.{next(iter(change))} was"):
        prepared.do(more)


def test_a_template_that_changed_is_refused_by_name(prepared: Any) -> None:
    template = prepared.file("ask.jinja", "Say: {{ prompt }}")
    prepared.do(prepared.lines(*asked(1, 2)) | {"template": template["path"]})
    prepared.file("ask.jinja", "Now say: {{ prompt }}")
    with pytest.raises(UserError, match=r"made with other settings: .*ask\.jinja was"):
        prepared.do(prepared.lines(*asked(1, 2, 3)) | {"template": template["path"]})


@pytest.mark.parametrize("setting", [{"held_out_frac": 0.5}, {"near_duplicates": None}])
def test_another_setting_beside_the_sources_is_refused_by_name(prepared: Any, setting: dict[str, Any]) -> None:
    prepared.do(prepared.lines(*asked(1, 2)))
    with pytest.raises(UserError, match=rf"prepare\.{next(iter(setting))} was"):
        prepared.do(prepared.lines(*asked(1, 2, 3)), **setting)


def test_a_change_that_is_accepted_adds_nothing(prepared: Any) -> None:
    source = prepared.lines(*asked(1, 2))
    prepared.do(source)
    prepared.run_dir = RunDir(prepared.run_dir.path, accept=(f"prepare.file.{source['path']}",))
    assert prepared.do(prepared.lines(*asked(1, 2, 3)))["prompts"] == 2


def test_a_file_lost_after_growth_is_not_made_anew_in_another_order(prepared: Any) -> None:
    prepared.do(prepared.lines(*asked(1, 2)))
    more = prepared.lines(*asked(3, 1, 2))
    prepared.do(more)
    Path(prepared.run_dir.path / "prepare/prompts-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"prompts-00000\.parquet is missing .*sources have grown since: put it back"):
        prepared.do(more)

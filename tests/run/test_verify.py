"""A sound run is proved sound; each kind of damage is named with its file and row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fabricated_run import make

from pipeline import codec
from pipeline.errors import UserError
from pipeline.records import STAGES
from pipeline.run import verify
from pipeline.run.files import file_hash
from pipeline.run.rundir import RunDir

Rows = list[dict[str, Any]]


def tampered(run_dir: RunDir, stage: str, change: Callable[[Rows], Any], number: int = 1) -> str:
    """What verify says when a shard's rows were changed by someone who also mended the manifest's hash."""
    manifest_path = run_dir.stage_path(stage) / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    record = manifest["files"][number]
    path = run_dir.stage_path(stage) / record["name"]
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    record |= {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(UserError) as caught:
        verify.run(run_dir)
    return str(caught.value)


def repacked(row: dict[str, Any], change: Callable[[Any, Any, Any], tuple[Any, Any, Any]]) -> None:
    row["logprobs"] = codec.encode(*change(*codec.decode(row["logprobs"])))


def test_a_sound_run_is_proved_stage_by_stage(run_dir: RunDir) -> None:
    proved = dict(verify.run(run_dir))
    assert list(proved) == list(STAGES)
    assert [stage for stage, told in proved.items() if "has not finished" in told] == ["export"]
    assert proved["prepare"] == "1 file unaltered; 6 prompts, each once"
    assert "2 files unaltered; 6 responses, each once and with its prompt; 24 tokens" in proved["generate"]
    assert "6 decisions, one for each response" in proved["filter"]


def test_a_run_under_way_is_proved_as_far_as_it_is(tmp_path: Path) -> None:
    proved = verify.run(make(tmp_path, until="generate"))
    assert [stage for stage, told in proved if "has not finished" not in told] == ["prepare", "generate"]


def test_a_run_without_a_finished_stage_proves_nothing(tmp_path: Path) -> None:
    run_dir = make(tmp_path, until="prepare")
    (run_dir.path / "prepare/manifest.json").unlink()
    with pytest.raises(UserError, match="prepare has not finished"):
        verify.run(run_dir)


@pytest.mark.parametrize("stage", ["prepare", "generate", "filter", "evaluate"])
def test_a_changed_byte_is_found_in_every_stage(run_dir: RunDir, stage: str) -> None:
    path = run_dir.stage_path(stage) / run_dir.manifest(stage)["files"][-1]["name"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path.name}: damaged"):
        verify.run(run_dir)


def swap(rows: Rows) -> None:
    rows[0], rows[1] = rows[1], rows[0]


def drop_token(rows: Rows) -> None:
    rows[1]["token_ids"] = rows[1]["token_ids"][:-1]


def beyond_vocabulary(rows: Rows) -> None:
    repacked(rows[1], lambda ids, logprobs, tail: (ids + 995, logprobs, tail))


def twice_the_mass(rows: Rows) -> None:
    repacked(rows[1], lambda ids, logprobs, tail: (ids, logprobs + np.float32(np.log(2)), tail))


def shift_rows(rows: Rows) -> None:
    repacked(rows[1], lambda ids, logprobs, tail: tuple(np.roll(x, 1, axis=0) for x in (ids, logprobs, tail)))  # type: ignore[return-value]


def one_token_twice(rows: Rows) -> None:
    def double(ids: Any, logprobs: Any, tail: Any) -> tuple[Any, Any, Any]:
        ids[0, 1] = ids[0, 2]
        return ids, logprobs, tail

    repacked(rows[1], double)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap, "responses-00001.parquet:1: response prompt4-0, where prompt3-0 was planned"),
        (lambda rows: rows.append(rows[2]), "parquet:4: response prompt5-0, where none was planned"),
        (lambda rows: rows.insert(1, rows[0]), "parquet:2: response prompt3-0, where prompt4-0 was planned"),
        (lambda rows: rows.pop(), "generate: response prompt5-0 is missing"),
        (
            lambda rows: rows[1].update(prompt_token_ids=[0, 2]),
            "prompt4-0 has another prompt_token_ids",
        ),
        (lambda rows: rows[1].update(split="held_out"), "prompt4-0 has another split than its prompt"),
        (drop_token, "parquet:2: response prompt4-0: 3 tokens, but 4 rows of log-probs"),
        (beyond_vocabulary, "parquet:2: response prompt4-0: token id 1001 is outside the vocabulary of 1000"),
        (
            twice_the_mass,
            "parquet:2: response prompt4-0, token 0: its row and tail hold a probability of 1.89",
        ),
        (one_token_twice, "parquet:2: response prompt4-0: a row of its log-probs has the same token twice"),
        (shift_rows, "parquet:2: response prompt4-0, token 2: its stored log-prob and its row differ by"),
        (lambda rows: rows[1]["logprobs"].update(version=1), "parquet:2: response prompt4-0: not packed log-probs"),
    ],
)
def test_the_first_bad_response_is_named(run_dir: RunDir, change: Callable[[Rows], Any], said: str) -> None:
    assert said in tampered(run_dir, "generate", change)


def test_a_scored_answer_is_the_text_that_was_given(run_dir: RunDir) -> None:
    """prepare holds what was to be scored for the fifth prompt; generate has other tokens."""

    def other_text(rows: Rows) -> None:
        rows[4]["completion_token_ids"] = [2, 3, 6]

    said = tampered(run_dir, "prepare", other_text, number=0)
    assert "responses-00001.parquet:2: response prompt4-0 is not the text that was to be scored" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap, "decisions-00001.parquet:1: a decision about prompt4-0, where prompt3-0 stands"),
        (lambda rows: rows.pop(), "filter: no decision about prompt5-0"),
        (lambda rows: rows[1].update(kept=False), "parquet:2: prompt4-0 is kept with a reason to drop it, or dropped"),
    ],
)
def test_the_first_bad_decision_is_named(run_dir: RunDir, change: Callable[[Rows], Any], said: str) -> None:
    assert said in tampered(run_dir, "filter", change)


def test_a_prompt_that_is_there_twice_is_named(run_dir: RunDir) -> None:
    said = tampered(run_dir, "prepare", lambda rows: rows.append(rows[0]), number=0)
    assert "prompts-00000.parquet:7: prompt prompt0 is there twice" in said

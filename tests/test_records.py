"""The rows that travel between stages."""

import importlib.util
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import codec, records, rows
from pipeline.config import Config

UNSET = dict.fromkeys(("tool_calls", "tool_call_id", "name", "reasoning_content"))
ROWS: dict[str, dict[str, Any]] = {
    "PROMPTS": {
        "conversation_id": "p",
        "prompt_id": "p",
        "messages": [
            {"role": "system", "content": "Kurz.", **UNSET},
            {"role": "assistant", "content": None, **UNSET, "tool_calls": '[{"name": "f"}]'},
            {"role": "user", "content": "你好 🙂", **UNSET},
        ],
        "tools": '[{"type": "function"}]',
        "category": "chat",
        "split": "train",
        "source": "a.jsonl:1",
        "licence": "cc0-1.0",
        "redacted": [("email", 2)],
        "safety": [("words:jailbreak", 1.0)],
        "method": "evolve",
        "parents": ["0123456789abcdef"],
        "template": None,
        "prompt_token_ids": [1, 200_000],
        "completion_token_ids": [2],
    },
    "RESPONSES": {
        "response_id": "p-0",
        "conversation_id": "p",
        "prompt_id": "p",
        "sample": 0,
        "split": "held_out",
        "category": "chat",
        "text": "",
        "reasoning": "hm",
        "finish_reason": "stop",
        "prompt_token_ids": [],
        "token_ids": [7],
        "token_logprobs": [-0.5],
        "logprobs": codec.encode(np.array([[7]]), np.log([[0.5]]), np.log([0.5])),  # type: ignore[arg-type]
        "reasoning_tokens": 3,
        "reasoning_start": 1,
        "reasoning_end": 2,
    },
    "DECISIONS": {
        "response_id": "p-0",
        "kept": False,
        "reasons": ["truncated"],
        "scores": [("too_long", 3.0)],
        "masked_spans": [{"start": 1, "end": 3, "kind": "email"}],
        "safety": [("guard:unsafe", 0.0)],
    },
    "SAMPLES": {
        "item_id": "i",
        "category": "code",
        "turn": 1,
        "arm": "sft_only",
        "question": "q",
        "answer": "a",
        "finish_reason": "length",
        "num_tokens": 2,
        "prompt_token_ids": [1],
        "token_ids": [2, 3],
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_comes_back_from_parquet_as_it_went_in(name: str, tmp_path: Path) -> None:
    schema: pa.Schema = getattr(records, name)
    assert schema.names == list(ROWS[name])
    pq.write_table(pa.Table.from_pylist([ROWS[name]], schema=schema), tmp_path / "rows.parquet")
    read = pq.read_table(tmp_path / "rows.parquet")
    assert read.schema.equals(schema)
    assert read.to_pylist() == [ROWS[name]]


@pytest.mark.parametrize("name", ["PROMPTS", "RESPONSES", "SAMPLES"])
def test_token_ids_above_two_bytes_fit(name: str) -> None:
    schema: pa.Schema = getattr(records, name)
    for column in [field.name for field in schema if field.name.endswith("token_ids")]:
        row = {**ROWS[name], column: [0, 65_536, 262_143]}
        assert pa.Table.from_pylist([row], schema=schema).column(column).to_pylist() == [[0, 65_536, 262_143]]


def test_the_alignment_contract_speaks_of_columns_that_responses_have() -> None:
    for column in ("logprobs", "prompt_token_ids", "token_ids"):
        assert column in records.ALIGNMENT
        assert column in records.RESPONSES.names


@pytest.mark.parametrize("stage", records.STAGES)
def test_a_stage_is_one_word_for_its_module_and_its_settings(stage: str) -> None:
    assert importlib.util.find_spec(f"pipeline.{stage}") is not None
    assert stage in Config.model_fields


@pytest.mark.parametrize(
    ("schema", "row"),
    [
        (records.PROMPTS, rows.PromptRow),
        (records.RESPONSES, rows.ResponseRow),
        (records.DECISIONS, rows.DecisionRow),
        (records.SAMPLES, rows.SampleRow),
        (records.TASKS, rows.TaskRow),
        (records.RISKS, rows.RiskRow),
        (pa.schema(list(records.MESSAGE)), rows.MessageRow),
        (pa.schema(list(records.SPAN)), rows.SpanRow),
    ],
)
def test_a_rows_type_has_the_columns_of_its_table(schema: pa.Schema, row: Any) -> None:
    types = typing.get_type_hints(row)
    assert set(schema.names) == set(types)
    for column in schema:
        is_text = "str" in str(types[column.name]) or "Literal" in str(types[column.name])
        assert not pa.types.is_string(column.type) or is_text, column.name
        assert not pa.types.is_integer(column.type) or types[column.name] is int, column.name

"""A run whose answers a test writes down, and filter over them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import filter as filter_stage
from pipeline.config import Config, validate
from pipeline.records import PROMPTS, RESPONSES
from pipeline.run.rundir import RunDir

END = 1
Row = dict[str, Any]


def response(name: str, text: str = "alpha beta", **changes: Any) -> Row:
    """A row of RESPONSES; `name` is `prompt-sample`."""
    prompt_id, _, sample = name.partition("-")
    row = {
        "response_id": name,
        "prompt_id": prompt_id,
        "sample": int(sample),
        "split": "train",
        "category": "chat",
        "text": text,
        "finish_reason": "stop",
        "prompt_token_ids": [0],
        "token_ids": [2, 3, END],
        "token_logprobs": [-1.0, -1.0, -1.0],
        "logprobs": None,
    }
    return {**row, **changes}


class Filtered:
    """A run; `captured` commits its answers, `do` filters them."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.folder, self.teacher, self.run_dir = folder, teacher, RunDir(folder / "trial")

    def config(self, **settings: Any) -> Config:
        data = {"name": "trial", "runs_dir": str(self.folder), "teacher": {"model": str(self.teacher)}}
        return validate({**data, "filter": settings}, "test")

    def captured(
        self,
        *shards: list[Row],
        prompts: dict[str, str] | None = None,
        messages: dict[str, list[Row]] | None = None,
        tools: dict[str, str] | None = None,
    ) -> "Filtered":
        """`prompts`: what was asked, by prompt id, where a test cares, or `messages`: all that was said before.

        No evaluation set is held against them.
        """
        asked = {row["prompt_id"]: f"What of {row['prompt_id']}?" for rows in shards for row in rows} | (prompts or {})
        prepared = [
            {
                "prompt_id": name,
                "messages": (messages or {}).get(name, [{"role": "user", "content": text}]),
                "tools": (tools or {}).get(name),
            }
            for name, text in asked.items()
        ]
        self.commit("prepare", {"prepare.decontaminate": []}, "prompts", PROMPTS, prepared)
        made_for = {"teacher.model": str(self.teacher), "teacher.revision": None}
        return self.commit("generate", made_for, "responses", RESPONSES, *shards)

    def commit(self, name: str, made_for: Row, prefix: str, schema: pa.Schema, *shards: list[Row]) -> "Filtered":
        stage = self.run_dir.begin(name, self.config(), made_for)
        files = [f"{prefix}-{number:05d}.parquet" for number in range(len(shards))]
        for file, rows in zip(files, shards, strict=True):
            stage.commit(pa.Table.from_pylist(rows, schema=schema), file)
        stage.finish([stage.path / file for file in files], {})
        return self

    def do(self, **settings: Any) -> dict[str, Row]:
        """Each decision by its response, in the order they were written."""
        filter_stage.run(self.config(**settings), self.run_dir)
        return {row["response_id"]: row for shard in self.shards() for row in shard}

    def shards(self) -> list[list[Row]]:
        files = sorted((self.run_dir.path / "filter").glob("decisions-*.parquet"))
        return [pq.read_table(path).to_pylist() for path in files]

    def dropped(self) -> dict[str, int]:
        waterfall = self.run_dir.manifest("filter")["waterfall"]
        return {step["reason"]: step["dropped"] for step in waterfall if step["dropped"]}


def reasons(decisions: dict[str, Row]) -> dict[str, list[str]]:
    return {name: row["reasons"] for name, row in decisions.items()}

"""The rows of a run's stages, read shard by shard, each file checked against the manifest's hash before it is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.run.manifest import FileRow
from pipeline.run.rundir import RunDir


def read_shards(run: RunDir, stage: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The Parquet files of a complete stage, in order, each checked against the manifest's hash before it is read.

    Raises UserError that names a file which is missing, truncated or altered.
    """
    for record in _shard_records(run, stage):
        yield _read_shard(run, stage, record, columns)


def read_shard(run: RunDir, stage: str, number: int, columns: list[str] | None = None) -> pa.Table:
    """One of them, with the same checks."""
    return _read_shard(run, stage, _shard_records(run, stage)[number], columns)


def _shard_records(run: RunDir, stage: str) -> list[FileRow]:
    return [record for record in run.manifest(stage)["files"] if record["name"].endswith(".parquet")]


def _read_shard(run: RunDir, stage: str, record: FileRow, columns: list[str] | None) -> pa.Table:
    path = run.check_file(stage, record)
    if lacking := set(columns or []) - set(pq.read_schema(path).names):
        raise UserError(
            f"{path}: has no {min(lacking)}: another version of Retort made it; do"
            f" `{run.command(stage, '--fresh')}` and what follows, or use that version"
        )
    return pq.read_table(path, columns=columns)


def shard_paths(run: RunDir, stage: str) -> list[Path]:
    """The Parquet files of a complete stage, in the order in which `read_shards` reads and checks them."""
    return [run.stage_path(stage) / record["name"] for record in _shard_records(run, stage)]


def read_planned(run: RunDir, columns: list[str], num_samples: int) -> Iterator[dict[str, Any]]:
    """The responses that generate plans, in its order: each prompt's columns, `sample` and `response_id`."""
    for table in read_shards(run, "prepare", sorted({"prompt_id", *columns})):
        for prompt in table.to_pylist():
            for sample in range(num_samples):
                yield {**prompt, "sample": sample, "response_id": f"{prompt['prompt_id']}-{sample}"}


def read_answers(run: RunDir, columns: list[str]) -> Iterator[tuple[pa.Table, pa.ChunkedArray]]:
    """`(answers, kept)` of each shard: generate's rows, and filter's decision about each.

    The answers have a column more, `masked_spans`: filter's too.

    Raises UserError where a file is damaged, or filter decided about other answers than those that are there.
    """
    if run.fingerprint("filter")["input.generate"] != run.output_hash("generate"):
        raise UserError(
            f"{run.path}: filter decided about other answers than generate has now; filter again:"
            f" {run.command('filter', '--fresh')}"
        )
    decisions = read_shards(run, "filter", ["kept", "masked_spans"])
    for answers, decided in zip(read_shards(run, "generate", columns), decisions, strict=True):
        yield answers.append_column("masked_spans", decided.column("masked_spans")), decided.column("kept")

"""Responses of other runs, taken for prompts that those have answered: found by the response's id, which is made from
the prompt and the number of the sample alone."""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.run import scratch
from pipeline.run.changes import changes
from pipeline.run.manifest import INPUT
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_shard, shard_paths

Row = dict[str, Any]
OPEN_SHARDS = 4  # of other runs, in memory at once
HARMLESS = (  # fingerprint keys that change no response: the hashes of the teacher's files say which it is
    "generate.shard_responses",
    "generate.num_samples",
    "teacher.model",
    "teacher.revision",
)
PLANNED = ("conversation_id", "split", "category")  # columns that this run's own prompt decides


class Reuse:
    """The responses of finished runs, for a run with the same teacher and settings."""

    def __init__(self, runs: Sequence[RunDir], database: sqlite3.Connection) -> None:
        self._runs, self._database = runs, database
        self.names = [str(run.path) for run in runs]
        self.dtypes = {run.manifest("generate").get("teacher_dtype", "") for run in runs}  # "": not known
        self._open: OrderedDict[tuple[int, int], list[Row]] = OrderedDict()
        database.execute("CREATE TABLE found (id TEXT PRIMARY KEY, run INT, shard INT, place INT) WITHOUT ROWID")
        for number, run in enumerate(runs):
            for shard, path in enumerate(shard_paths(run, "generate")):
                ids = pq.read_table(path, columns=["response_id"]).column("response_id").to_pylist()
                rows = ((response_id, number, shard, place) for place, response_id in enumerate(ids))
                database.executemany("INSERT OR IGNORE INTO found VALUES (?, ?, ?, ?)", rows)

    def find(self, planned: Row) -> Row | None:
        """The row of RESPONSES for a planned one; None if no run has it, or if its prompt came out in other tokens, as
        when the template writes the date.

        Raises UserError if the file that holds it is damaged.
        """
        where = self._database.execute(
            "SELECT run, shard, place FROM found WHERE id = ?", (planned["response_id"],)
        ).fetchone()
        if where is None:
            return None
        run, shard, place = where
        found = self._shard(run, shard)[place]
        is_same = found["prompt_token_ids"] == planned["prompt_token_ids"]
        is_same &= planned["completion_token_ids"] in (None, found["token_ids"])
        return {**found, **{name: planned[name] for name in PLANNED}} if is_same else None

    def _shard(self, run: int, shard: int) -> list[Row]:
        """Its rows. The last few shards are kept, as prompts come in much the same order."""
        if (run, shard) not in self._open:
            self._open[run, shard] = read_shard(self._runs[run], "generate", shard).to_pylist()
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end((run, shard))
        return self._open[run, shard]


@contextmanager
def opened(paths: Sequence[str], folder: Path, fingerprint: Row) -> Iterator[Reuse | None]:
    """The responses of these runs, None if no run is named; `folder` is for the index while it is used.

    Raises UserError if generate has not finished in one of them, or made its responses in another way.
    """
    if not paths:
        yield None
        return
    runs = [RunDir(Path(path)) for path in paths]
    for run in runs:
        _check_alike(run, fingerprint)
    with scratch.database(folder) as database:
        yield Reuse(runs, database)


def _check_alike(run: RunDir, fingerprint: Row) -> None:
    made = run.fingerprint("generate")
    for change in changes(made, fingerprint, []):
        if change["key"] not in HARMLESS and not change["key"].startswith(INPUT):
            raise UserError(
                f"generate.reuse {run.path}: its responses were made in another way: {change['key']} is"
                f" {change['was']!r} there and {change['is']!r} here"
            )

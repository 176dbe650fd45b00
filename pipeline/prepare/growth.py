"""A finished prepare whose sources have more: the prompts that it has stay, in files that nothing touches, and what is
new comes after them. So every answer stays as well."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipeline import corpora
from pipeline.config import Config
from pipeline.console import counted, say
from pipeline.errors import UserError
from pipeline.prepare import conversations
from pipeline.prepare.conversations import Asked
from pipeline.prepare.screening import origin_of
from pipeline.run.changes import changes
from pipeline.run.manifest import ManifestRow
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_shards

Row = dict[str, Any]
GROWING = ("prepare.sources", "prepare.max_prompts", "prepare.bad_rows")
CONTENT = ("prepare.file.", "prepare.folder.")  # of fingerprint keys: what a source holds
AMOUNT = ("limit", "weight")  # of a source: how much of it is taken
PLACE = ("path", "dataset", "subset", "dataset_split", "revision", "data_files")


def earlier(config: Config, run_dir: RunDir, fingerprint: Row) -> ManifestRow | None:
    """The manifest of a prepare that these settings can add to; None if it has not finished or is to be done afresh,
    nothing that it reads has changed, or anything else has, such as what a source's rows become.

    Raises UserError if it could, but has lost a file or has as many prompts as are wanted.
    """
    if run_dir.fresh != "no" or not run_dir.is_done("prepare"):
        return None
    manifest = run_dir.manifest("prepare")
    lost = [name for name in run_dir.lost_files("prepare") if name.endswith(".parquet")]
    if lost and "parts" in manifest:
        raise UserError(
            f"{run_dir.stage_path('prepare') / lost[0]} is missing or cut short, and can't be made anew, as the sources"
            " have grown since: put it back, or do everything again (--fresh)"
        )
    changed = changes(manifest["fingerprint"], fingerprint, manifest["accepted"])
    templates = {f"prepare.file.{source.template}" for source in config.prepare.sources}
    can_grow = all(
        (c["key"] in GROWING or c["key"].startswith(CONTENT)) and c["key"] not in {*templates, *run_dir.accept}
        for c in changed
    )
    was, now = (made.get("prepare.sources", []) for made in (manifest["fingerprint"], fingerprint))
    if not (changed and can_grow and _are_read_alike(was, now)):
        return None
    num, wanted = manifest["counts"]["prompts"], config.prepare.max_prompts
    if wanted is not None and num >= wanted:
        accepts = " ".join(f"--accept {c['key']}" for c in changed)
        raise UserError(
            f"{run_dir.path}: the sources have changed, and the run has {num} prompts, and prepare.max_prompts is"
            f" {wanted}: raise it to add more, or keep the prompts as they are ({accepts})"
        )
    return manifest


def _are_read_alike(was: list[Row], now: list[Row]) -> bool:
    """Whether each source that there was and still is gives the same prompts for the same rows."""
    before = {_key(source, PLACE): _key(source) for source in was}
    return all(before.get(_key(source, PLACE), _key(source)) == _key(source) for source in now)


def _key(source: Row, names: tuple[str, ...] | None = None) -> str:
    chosen = names or tuple(sorted(source.keys() - {*AMOUNT, *PLACE}))
    return repr([(name, source.get(name)) for name in chosen if source.get(name) is not None])


def kept(config: Config, run_dir: RunDir, tokenizer: Any) -> Iterator[tuple[Row, Asked]]:
    """The prompts that prepare has: each row of PROMPTS, and the conversation that it was made from."""
    sources = config.prepare.sources
    origins = {str(file): origin_of(source) for source in sources for file in corpora.files_of(source)}
    for table in read_shards(run_dir, "prepare"):
        for row in table.to_pylist():
            scored = row["completion_token_ids"]
            answer = None if scored is None else tokenizer.decode(scored, skip_special_tokens=True)
            asked = conversations.of_row(row, answer)
            yield row, replace(asked, origin=origins.get(asked.origin, asked.origin))  # a folder's files are one source


class Known:
    """The ids of the prompts that a run has, on disk; and which of those that it had before its sources still have."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.execute("CREATE TABLE known (id TEXT PRIMARY KEY, is_unmet INT) WITHOUT ROWID")
        self._num = self._num_earlier = self._num_of_sources = self.num_unmet = 0

    def __len__(self) -> int:
        return self._num

    def __contains__(self, identifier: str) -> bool:
        return self._database.execute("SELECT 1 FROM known WHERE id = ?", (identifier,)).fetchone() is not None

    def add(self, identifier: str, is_unmet: bool = False) -> None:
        self._database.execute("INSERT INTO known VALUES (?, ?)", (identifier, is_unmet))
        self._num += 1

    def add_earlier(self, row: Row) -> None:
        """A prompt that the run had before it grew, as a row of PROMPTS."""
        is_of_sources = row["method"] == "source"
        self.add(row["prompt_id"], is_unmet=is_of_sources)
        self._num_earlier += 1
        self._num_of_sources += is_of_sources
        self.num_unmet += is_of_sources

    def meets(self, identifier: str) -> bool:
        """Whether a prompt is one that the run had, and is met for the first time."""
        update = "UPDATE known SET is_unmet = 0 WHERE id = ? AND is_unmet"
        is_met = self._database.execute(update, (identifier,)).rowcount == 1
        self.num_unmet -= is_met
        return is_met

    def check(self, run_dir: RunDir, unread: Iterator[Asked]) -> None:
        """Say how a run grew, if it did. Raises UserError if the sources look like other data, not like more of it.

        What is `unread`, as enough prompts are there, is read only until half of the earlier ones were met.
        """
        if not self._num_earlier:
            return
        num, enough = self._num_of_sources, self._num_of_sources / 2
        while self.num_unmet > enough and next(unread, None) is not None:
            pass
        if self.num_unmet > enough:
            raise UserError(
                f"{run_dir.path}: prepare.sources lacks {self.num_unmet} of the {num} prompts that the run has, so it"
                " looks like other data and not like more of the same. Give the run a new name (name=...), or discard"
                " what it has (--fresh)"
            )
        new = counted(self._num - self._num_earlier, "prompt")
        say(f"prepare: the run grows by {new}; the {self._num_earlier} that it has stay as they are")
        if self.num_unmet and next(unread, None) is None:
            say(f"prepare: the sources lack {self.num_unmet} of them by now; --fresh would leave those out")

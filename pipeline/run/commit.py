"""A stage under way: it commits files one by one, and the manifest last."""

import json
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Config
from pipeline.console import say
from pipeline.machine import hardware
from pipeline.run import artifacts
from pipeline.run.files import file_hash, read_json, user_disk_errors, write_json, write_table
from pipeline.run.manifest import SCHEMA_VERSION, Started

if TYPE_CHECKING:
    from pipeline.run.rundir import RunDir

GROWN_FROM = "grown_from"  # in a manifest: the output hashes that the stage had before it grew


@dataclass
class Stage:
    """A stage under way: commits files, then the manifest."""

    run: "RunDir"
    name: str
    path: Path
    fingerprint: dict[str, Any]
    accepted: list[dict[str, Any]]
    complete: bool = False
    began: float = field(default_factory=time.monotonic)
    spent_s: float = 0.0  # by earlier tries
    num_tries: int | None = 1  # with this one; None: not known

    def commit(self, table: pa.Table, name: str, level: int = 3) -> None:
        """Write one Parquet file: temporary name, fsync, rename. Raises UserError where the disk is full."""
        write_table(table, self.path / name, level)

    def shards(self, prefix: str) -> list[str]:
        """Names of the files committed so far, in order."""
        return sorted(p.name for p in self.path.glob(f"{prefix}-*.parquet"))

    def note(self, name: str, row: dict[str, Any]) -> None:
        """Add a line to a JSONL file for people, such as a list of what was left out."""
        path = self.path / name
        with user_disk_errors(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def notes(self) -> list[Path]:
        """The JSONL files that are there."""
        return sorted(self.path.glob("*.jsonl"))

    def remember(self, **facts: Any) -> None:
        """Keep facts that a later try could not find out again, until the manifest has them."""
        started = read_json(self.path / artifacts.STARTED, Started)
        write_json(self.path / artifacts.STARTED, {**started, "facts": {**self.facts(), **facts}})

    def facts(self) -> dict[str, Any]:
        """What was remembered, in this try or an earlier one."""
        return read_json(self.path / artifacts.STARTED, Started).get("facts", {})

    def elapsed_s(self) -> float:
        """What this try has taken so far, and what is known of those before it."""
        return self.spent_s + time.monotonic() - self.began

    def finish(self, files: list[Path], counts: dict[str, Any], **facts: Any) -> None:
        """Write the manifest: the stage is complete."""
        write_json(
            self.path / artifacts.MANIFEST,
            {
                "schema_version": SCHEMA_VERSION,
                "stage": self.name,
                "fingerprint": self.fingerprint,
                "accepted": self.accepted,
                "files": [self._file_record(path) for path in files],
                "counts": counts,
                **self.facts(),
                **facts,
                "versions": hardware.versions(),
                "machine": hardware.describe(),
                "elapsed_s": round(self.elapsed_s(), 3),
                "num_tries": self.num_tries,
                "finished": now(),
            },
        )
        say(f"{self.name}: {', '.join(f'{key} {value}' for key, value in counts.items())} → {self.path}")

    def grow(self, config: Config, written_anew: Collection[str], counts: dict[str, Any], **facts: Any) -> None:
        """Put what was added beside what was there, and write the manifest: the stage is complete.

        What is there stays, but for the files `written_anew`, which go if this try wrote none of that name.
        """
        folder, added = self.run.stage_path(self.name), sorted(path.name for path in self.path.iterdir())
        manifest = self.run.manifest(self.name)
        kept = [record["name"] for record in manifest["files"] if record["name"] not in {*added, *written_anew}]
        earlier_hashes = [*manifest.get(GROWN_FROM, ()), self.run.output_hash(self.name)]
        for name in written_anew:
            (folder / name).unlink(missing_ok=True)
        for name in added:
            (self.path / name).replace(folder / name)
        self.path.rmdir()
        self.path = folder
        self.run.write_config(self.name, config)
        started = read_json(folder / artifacts.STARTED, Started)
        write_json(folder / artifacts.STARTED, {**started, "fingerprint": self.fingerprint})
        names = sorted([*kept, *added], key=lambda name: (not name.endswith(".parquet"), name))
        self.finish([folder / name for name in names], counts, **facts, **{GROWN_FROM: earlier_hashes})

    def _file_record(self, path: Path) -> dict[str, Any]:
        record: dict[str, Any] = {"name": str(path.relative_to(self.path)), "bytes": path.stat().st_size}
        if path.suffix == ".parquet":
            record["rows"] = pq.read_metadata(path).num_rows
        return {**record, "sha256": file_hash(path)}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

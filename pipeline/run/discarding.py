"""What the folders of a run hold and how long they took, to be said before they are discarded."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UnsureError
from pipeline.report.figures import seconds
from pipeline.run import artifacts

LITTLE_S = 60.0  # that may be discarded without asking
VERDICTS = artifacts.VERDICTS  # a judge's, which may have been paid for
COUNTS = {  # of each stage, the count in its manifest that tells most, and what that counts
    "prepare": ("prompts", "prompts"),
    "generate": ("responses", "answers"),
    "filter": ("responses", "decisions"),
    "train": ("steps", "steps"),
    "evaluate": ("arms", "arms"),
    "export": ("files", "files"),
}


@dataclass(frozen=True)
class Work:
    """One folder of a run: what is in it, and how long it took."""

    name: str
    elapsed_s: float
    holds: tuple[str, ...]  # `452 answers`
    num_verdicts: int

    def __str__(self) -> str:
        return f"{self.name} ({', '.join([*self.holds, seconds(self.elapsed_s)])})"


def check(run: Path, folders: Sequence[Path], cause: str, way: str) -> None:
    """Raises UnsureError if the folders hold more than a minute's work, or a judge's verdicts.

    `cause` is what would discard them, `way` how to allow or avoid it.
    """
    done = [of_folder(folder) for folder in folders if folder.is_dir()]
    elapsed_s = sum(work.elapsed_s for work in done)
    if elapsed_s > LITTLE_S or any(work.num_verdicts for work in done):
        listed = ", ".join(map(str, done))
        total = f": {seconds(elapsed_s)} of work" if len(done) > 1 else ""
        raise UnsureError(f"{run}: {cause} would discard {listed}{total}", way)


def of_folder(folder: Path) -> Work:
    """What a stage's folder holds, finished or not, from its manifest or what it has committed; or any other folder."""
    manifest, started = _json(folder / artifacts.MANIFEST), _json(folder / artifacts.STARTED)
    times = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file()]
    holds = _counted(folder.name, manifest) or _committed(folder)
    verdicts = folder / VERDICTS
    num_verdicts = verdicts.read_bytes().count(b"\n") if verdicts.is_file() else 0
    if "elapsed_s" in manifest:
        elapsed_s = manifest["elapsed_s"]
    else:  # until the newest file
        began_s = started.get("began_s") or min(times, default=0.0)
        elapsed_s = (started.get("spent_s") or 0.0) + max(0.0, max(times, default=0.0) - began_s)
    if num_verdicts:
        holds = (*holds, f"{num_verdicts} verdicts of a judge")
    return Work(folder.name, float(elapsed_s), holds, num_verdicts)


def _counted(name: str, manifest: dict[str, Any]) -> tuple[str, ...]:
    key, noun = COUNTS.get(name, ("", ""))
    number = manifest.get("counts", {}).get(key)
    return () if number is None else (f"{number} {noun}",)


def _committed(folder: Path) -> tuple[str, ...]:
    """Rows that are written in a folder without a manifest; for training, its steps."""
    _, noun = COUNTS.get(folder.name, ("", "rows"))
    if folder.name == "train":
        steps = [path.name.rpartition("-")[2] for path in folder.glob("checkpoints/*/checkpoint-*")]
        number = max((int(step) for step in steps if step.isdecimal()), default=0)
    else:
        number = 0
        for path in folder.rglob("*.parquet"):
            with suppress(pa.ArrowException, OSError):  # a damaged one
                number += pq.read_metadata(path).num_rows
    noun = "answers" if folder.name == "evaluate" else noun
    return (f"{number} {noun}",) if number else ()


def _json(path: Path) -> dict[str, Any]:
    """What a file says of itself; nothing if it is missing or damaged."""
    with suppress(OSError, ValueError):
        data = json.loads(path.read_text(encoding="utf-8"))
        return data if isinstance(data, dict) else {}
    return {}

"""What an earlier try of a stage left in its folder: its manifest, how long it took, which files are lost."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.run import artifacts
from pipeline.run.files import read_json
from pipeline.run.manifest import Manifest, Started


def left_by(folder: Path) -> dict[str, Any] | None:
    """What an earlier try left: a manifest where it finished, else what it started with, or None."""
    for name, shape in ((artifacts.MANIFEST, Manifest), (artifacts.STARTED, Started)):
        if (folder / name).exists():
            return read_json(folder / name, shape)
    return None


def tries_before(folder: Path, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """What started.json says of a try that begins now, and of those before it, by what they left."""
    num, spent_s = 0, 0.0
    if earlier and "elapsed_s" in earlier:
        num, spent_s = earlier.get("num_tries"), earlier["elapsed_s"]
    elif earlier and earlier.get("began_s") is None:
        num = None  # one or several, with pauses between them
    elif earlier:
        newest_s = max(path.stat().st_mtime for path in folder.rglob("*") if path.is_file())
        num, spent_s = earlier["num_tries"], earlier["spent_s"] + max(0.0, newest_s - earlier["began_s"])
    return {"began_s": time.time(), "spent_s": round(spent_s, 3), "num_tries": None if num is None else num + 1}


def lost_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files of a manifest that are missing or have another size."""
    sizes = {record["name"]: record["bytes"] for record in manifest["files"]}
    return [n for n, size in sizes.items() if not (folder / n).is_file() or (folder / n).stat().st_size != size]


def is_whole(folder: Path) -> bool:
    """Whether a stage has its manifest, and every file that it names."""
    return (folder / artifacts.MANIFEST).exists() and not lost_files(
        folder, read_json(folder / artifacts.MANIFEST, Manifest)
    )


def discard(folder: Path) -> None:
    """Delete a folder: out of sight at once, so that a kill leaves no part of it."""
    discarded = folder.with_name(f".discarded-{folder.name}")
    shutil.rmtree(discarded, ignore_errors=True)
    if folder.exists():
        folder.rename(discarded)
        shutil.rmtree(discarded)

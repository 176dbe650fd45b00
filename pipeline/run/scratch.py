"""Tables that a stage looks things up in while it runs: on disk, so that memory does not grow with the corpus."""

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

CACHE_BYTES = 64 << 20  # of pages in memory; what is more is read and written through the operating system's cache


@contextmanager
def database(folder: Path) -> Generator[sqlite3.Connection]:
    """An empty SQLite database in a file of `folder` without a name there, so it goes with the process, killed or not.

    All that is done to it is one transaction, never committed: nothing is written before the cache is full. The folder
    is the stage's own, as a system's folder for temporary files may be held in memory.

    Raises OSError or sqlite3.Error where the folder can't be written to, and sqlite3.Error where the disk is full.
    """
    path = folder.absolute() / ".scratch"
    path.unlink(missing_ok=True)  # of a process that was killed in the moment before it lost its name
    # without locks: nobody else sees the file, and not every file system of a cluster has them
    with closing(sqlite3.connect(f"{path.as_uri()}?nolock=1", uri=True, isolation_level=None)) as made:
        path.unlink()
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_BYTES >> 10}"):
            made.execute(f"PRAGMA {setting}")
        made.execute("BEGIN")
        yield made

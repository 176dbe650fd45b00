"""Tables on disk: what they leave behind, how much memory they take, and what is said where the disk is full."""

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.run import scratch
from pipeline.run.files import user_disk_errors

PROGRAM = """
import pathlib, sys
from pipeline.run import scratch

def resident_kib():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

with scratch.database(pathlib.Path(sys.argv[1])) as database:
    database.execute("CREATE TABLE text (row INTEGER PRIMARY KEY, value BLOB)")
    before = resident_kib()
    database.executemany("INSERT INTO text VALUES (?, ?)", ((n, bytes(1000)) for n in range(200_000)))
    held = database.execute("SELECT count(*), sum(length(value)) FROM text").fetchone()
    print(resident_kib() - before, held, flush=True)
    input()
"""


def holding(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that holds 200 MB in a database of this folder, and what it said of that."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline()


def test_memory_stays_at_the_cache_and_a_kill_leaves_nothing(tmp_path: Path) -> None:
    process, said = holding(tmp_path)
    try:
        grown_kib, held = said.split(maxsplit=1)
        assert held == "(200000, 200000000)\n"
        assert 32 << 10 < int(grown_kib) < 1.25 * scratch.CACHE_BYTES / 1024
        links = [link.readlink() for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert f"{tmp_path}/.scratch (deleted)" in map(str, links)  # on the disk of the folder, and nowhere else
        assert list(tmp_path.iterdir()) == []
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert list(tmp_path.iterdir()) == []


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_several_in_one_folder_are_apart_and_closed_at_the_end(tmp_path: Path) -> None:
    before = num_open()
    with scratch.database(tmp_path) as one, scratch.database(tmp_path) as other:
        one.execute("CREATE TABLE text (value TEXT)")
        assert other.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    assert num_open() == before
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        one.execute("SELECT 1")


def test_what_a_process_that_was_killed_left_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".scratch").write_bytes(b"no database")
    with scratch.database(tmp_path) as database:
        assert database.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "50 % of it?mode=memory#ü"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with scratch.database(Path()) as database:
        [(_, _, path)] = database.execute("PRAGMA database_list").fetchall()
        assert path == str(folder / ".scratch")


def fill(folder: Path) -> None:
    with user_disk_errors(folder), scratch.database(folder) as database:
        database.execute("PRAGMA max_page_count = 10")  # SQLite's own limit: the same error as that of the disk
        database.execute("CREATE TABLE text (value BLOB)")
        database.executemany("INSERT INTO text VALUES (?)", [(bytes(4096),)] * 20)


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no disk space"):
        fill(tmp_path)

"""Files: written as a whole or not at all, and damaged ones named."""

import errno
import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pytest
from support.failing import fail_with

from pipeline.errors import UserError
from pipeline.run.files import (
    file_hash,
    first_line,
    json_lines,
    read_committed,
    read_json,
    text_hash,
    user_disk_errors,
    write_json,
    write_table,
    write_text,
)
from pipeline.run.manifest import Started

TABLE = pa.table({"n": [1, 2, 3], "text": ["a", "b", "c"]})


def test_a_full_disk_keeps_the_earlier_version_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"version": 1})
    monkeypatch.setattr("os.fsync", fail_with(errno.ENOSPC))
    with pytest.raises(UserError, match="no disk space"):
        write_json(path, {"version": 2})
    assert read_json(path) == {"version": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_another_error_of_the_system_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="I/O") as caught, user_disk_errors(tmp_path / "x"):
        raise OSError(errno.EIO, "I/O")
    assert caught.value.errno == errno.EIO


def test_a_full_disk_is_known_by_what_a_library_of_its_own_exceptions_says(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no disk space"), user_disk_errors(tmp_path / "x"):
        raise RuntimeError("Error while serializing: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="write failed"), user_disk_errors(tmp_path / "x"):
        raise RuntimeError("write failed")


def test_what_the_user_is_told_is_not_wrapped_a_second_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^No space left for doubt$"), user_disk_errors(tmp_path / "x"):
        raise UserError("No space left for doubt")


def test_a_failed_write_of_any_kind_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", fail_with(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_table(TABLE, tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())


def test_text_is_written_as_utf8_on_any_machine(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "你好 🙂"})
    assert "你好 🙂" in (tmp_path / "a.json").read_bytes().decode("utf-8")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no Parquet at all, but longer than its footer"])
def test_a_committed_file_that_cannot_be_read_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_committed(tmp_path / "a.parquet", ["n"])
    line = f"{tmp_path}/a.parquet: damaged (not whole); delete it and run the same command again"
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'{"a": 1,\n', "not valid JSON from line 2 on"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"{}", "has no fingerprint"),
        (b'{"fingerprint": 3, "accepted": []}', "fingerprint is not what was written there"),
        (b"[]", "the whole is not what was written there"),
    ],
)
def test_a_json_file_that_is_damaged_is_told_in_our_words(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_json(tmp_path / "a.json", Started)
    assert str(caught.value) == f"{tmp_path}/a.json: damaged ({what}); delete the folder {tmp_path} and run again"


def test_a_librarys_words_are_one_line_that_is_cut_between_words() -> None:
    assert first_line(ValueError("\n  a  b\nc")) == "a b"
    assert first_line(ValueError()) == "ValueError"
    sentence = "Either the file is corrupted or this is not a parquet file."
    assert first_line(ValueError(f"{'word ' * 30}{sentence}")).endswith(sentence)
    cut = first_line(ValueError("word " * 200))
    assert cut.endswith("word …")
    assert len(cut) < 410


def test_hashes_are_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("é".encode())
    assert file_hash(tmp_path / "a") == text_hash("é") == hashlib.sha256("é".encode()).hexdigest()


def test_what_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report\.html: can't be written \(Is a directory\)"):
        write_text(tmp_path / "report.html", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_lines_of_json_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = '{"a": "\u2028\u0085\x0b"}'
    path.write_bytes("\ufeff".encode() + f"{text}\n".encode() + "\ufeff{}\r\n\n".encode())
    assert json_lines(path) == [text.encode(), b"{}\r", b"", b""]
    path.write_bytes(b"\xff\xfe\n{}")  # what a kill left, and no UTF-16
    assert json_lines(path) == [b"\xff\xfe", b"{}"]

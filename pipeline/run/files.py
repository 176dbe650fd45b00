"""Files, written as a whole or not at all, read with one clear line where they are damaged, and hashed."""

import codecs
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError

FULL_DISK_BYTES = 16 << 20
MARKS = {  # byte-order marks, the longer ones first: that of UTF-32 begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LONGEST_LINE = 400  # characters of a library's message
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR)


def read_committed(path: Path, columns: list[str]) -> pa.Table:
    """A file committed by a stage that has not finished. Raises UserError where it can't be read."""
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged ({_fault(error)}); delete it and run the same command again") from None


def write_table(table: pa.Table, path: Path, level: int = 3) -> None:
    """Write a Parquet file atomically, at this level of zstd. Raises UserError where the disk is full."""
    # numbers and packed bytes hardly repeat as a whole, and nobody looks for their least: both would only cost
    text: Any = [field.name for field in table.schema if pa.types.is_string(field.type)]
    options = {"use_dictionary": text, "write_statistics": text}
    with _atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=level, **options)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises UserError where the disk is full."""
    with _atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, shape: type[BaseModel] | None = None) -> dict[str, Any]:
    """A JSON file that a run wrote, of this shape. Raises UserError where it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if shape is not None:
            shape.model_validate(data)
        return data
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        what = f"has no {key}" if first["type"] == "missing" else f"{key or 'the whole'} is not what was written there"
        raise UserError(f"{path}: damaged ({what}); delete the folder {path.parent} and run again") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged ({_fault(error)}); delete the folder {path.parent} and run again") from None


@contextmanager
def user_disk_errors(path: Path) -> Generator[None]:
    """Turn `no space left` into one clear line; what was committed before stays."""
    try:
        yield
    except Exception as error:  # torch and safetensors have exceptions of their own for a failed write
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        by_number = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        by_text = any(part in str(error) for part in ("No space left", "disk is full"))  # the latter: SQLite's
        by_text = by_text or ("write" in str(error) and free < FULL_DISK_BYTES)
        if isinstance(error, UserError) or not (by_number or by_text):
            raise
        raise UserError(
            f"{path}: no disk space ({free / 1e6:.0f} MB free); free some and run the same command again:"
            " what is committed is kept"
        ) from None


def readable(model: Path) -> None:
    """Give a model's weights the mode of its config.json: safetensors writes them for their owner alone."""
    mode = (model / "config.json").stat().st_mode
    for path in model.glob("*.safetensors"):
        path.chmod(mode)


def encoding_of(path: Path) -> str:
    """The encoding of a text file by its byte-order mark; UTF-8 if it has none."""
    with path.open("rb") as stream:
        return marked_encoding(stream.read(4))


def marked_encoding(start: bytes) -> str:
    """The same by a text's first four bytes."""
    return next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), "utf-8-sig")


def json_lines(path: Path) -> list[bytes]:
    """The lines of a file with one JSON object a line, in UTF-8 and without byte-order marks.

    A line ends at a line feed alone: the other characters that end a line for Python, such as U+2028, may stand in
    JSON's texts.
    """
    data = path.read_bytes()
    if 0 in data[:4] and (encoding := encoding_of(path)) != "utf-8-sig":  # the 0 is of the `{` in UTF-16
        data = data.decode(encoding, errors="replace").encode()
    return [line.removeprefix(codecs.BOM_UTF8) for line in data.split(b"\n")]


def file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(folder: Path) -> str:
    """One hash over the names and contents of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return text_hash(json.dumps([[str(path.relative_to(folder)), file_hash(path)] for path in files]))


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _atomic(path: Path) -> Generator[Path]:
    temporary = path.with_name(f".{path.name}.tmp")
    with user_disk_errors(path):
        try:
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise UserError(f"{path}: can't be written ({error.strerror})") from None
        finally:
            if os.access(path.parent, os.W_OK):
                temporary.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Put on the disk that files in a folder are new, or have new names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fault(error: Exception) -> str:
    """Why a file that a run wrote can't be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON from line {error.lineno} on"
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "not whole"


def first_line(error: Exception) -> str:
    """The first line of a library's error."""
    return one_line(next((line for line in str(error).splitlines() if line.strip()), type(error).__name__))


def one_line(text: str) -> str:
    """A text in one line; a long one is cut between words."""
    text = " ".join(text.split())
    if len(text) <= LONGEST_LINE:
        return text
    return text[:LONGEST_LINE].rsplit(" ", 1)[0] + " …"

"""Files of rows: which of them a path names, how each is packed, and its rows, each with the place it came from."""

import csv
import io
import lzma
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpora import json_rows
from pipeline.corpora.json_rows import BadRowError, Row
from pipeline.data import shipped
from pipeline.errors import UserError
from pipeline.run.files import first_line, marked_encoding
from pipeline.text.prompt_templates import listed

Placed = tuple[str, Row | BadRowError]  # where a row stands, and the row
UNREAD = object()  # the value of a column that nobody asked for
MAX_CELL_CHARACTERS = (1 << 31) - 1
NOT_A_NUMBER = ("nan", "NaN", "-nan")  # as numpy, pandas, R and Python write into a CSV that there is not a number
DELIMITERS = (",", ";", "\t")
BATCH_ROWS = 1024
PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}  # texts alone: the other kinds pack themselves
BESIDE = (  # what tells of the rows in a folder, and holds none: as `datasets` has it
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
)


def files(path: str) -> list[Path]:
    """The files of rows that a path names, in the order in which they are read: itself, those anywhere below a folder,
    or those that a pattern such as data/*.jsonl matches. Files of other kinds beside them are left out; of a folder of
    `save_to_disk` all belong to it.

    Raises UserError if there is none, and for a single file of another kind.
    """
    here = Path(path)
    if shipped.find(here).is_file():
        _check_kind(here)
        return [here]
    if is_saved(here):
        return _visible(here, "**/*")
    if here.is_dir():
        found = _visible(here, "**/*")
    elif any(mark in path for mark in "*?["):
        top = Path(here.anchor)  # that of a relative path is where we stand
        found = _visible(top, str(here.relative_to(top)))
    else:
        raise UserError(f"{path}: no such file or folder; paths are from where you stand")
    readable = [each for each in found if _is_readable(each) and each.name not in BESIDE]
    if not readable:
        there = f"there are {listed(each.name for each in found)}" if found else "there is no file"
        raise UserError(f"{path}: no file of rows: {there}; {_kinds_told()}")
    return readable


def _visible(top: Path, pattern: str) -> list[Path]:
    """The files that a pattern matches, sorted; hidden ones, and those in hidden folders, only if it names them."""
    named = Path(pattern).parts
    found = (path for path in top.glob(pattern) if path.is_file())
    parts = ((path, path.relative_to(top).parts) for path in found)
    return sorted(path for path, each in parts if not any(p.startswith(".") and p not in named for p in each))


def is_saved(folder: Path) -> bool:
    """Whether a folder is one of `save_to_disk`."""
    if (folder / "dataset_dict.json").is_file():
        return True
    return (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()


def rows(path: Path, columns: Collection[str] | None) -> Iterator[Placed]:
    """`(place, row)` for each row of a file: of its text the line, of .json and binary files the number of the row.

    Only the values of `columns` are read where others can be left alone; they are UNREAD then.
    Raises UserError if the file can't be read, or has two columns with the name of one of `columns`.
    """
    yield from READERS[_check_kind(path)](path, columns)


def kind(path: Path) -> str:
    """The suffix that tells how a file's rows are written: `.jsonl` of chats.JSONL.gz."""
    name = path.name.lower()
    packed = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    return Path(name.removesuffix(packed)).suffix


def encoding(path: Path) -> str:
    """The encoding of a text file, packed or not, by its byte-order mark; UTF-8 if it has none."""
    with unpacked(path) as stream:
        return marked_encoding(stream.read(4))


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, as they were before they were packed. Raises UserError if it can't be read."""
    try:
        with _opened(path) as stream:
            yield stream
    except (pa.ArrowException, OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{path}: can't be read ({first_line(error)})") from None


def _opened(path: Path) -> Any:
    packing, path = PACKED.get(path.suffix.lower()), shipped.find(path)
    if packing == "xz":  # Arrow has none
        return lzma.open(path)
    if packing is None:
        return path.open("rb")
    return io.BufferedReader(cast(Any, pa.input_stream(str(path), compression=packing)))


def wanted(origin: str, names: list[str], columns: Collection[str] | None) -> list[str]:
    """The names that are among `columns`. Raises UserError if one of them is two columns'."""
    found = [name for name in names if columns is None or name in columns]
    if twice := next((name for name in found if found.count(name) > 1), None):
        raise UserError(f"{origin}: two columns are called {twice!r}; rename or remove one")
    return found


def arrow_rows(table: pa.RecordBatch | pa.Table, names: list[str], read: list[str]) -> Iterator[Row | BadRowError]:
    """The rows of a table; those of its columns `names` that are not in `read` are UNREAD."""
    cells = {name: _cells(table.column(name)) for name in read}
    for place in range(table.num_rows):
        row = {name: cells[name][place] if name in cells else UNREAD for name in names}
        bad = next((f"column {name!r} can't be read: {row[name]}" for name in read if _is_bad(row[name])), None)
        yield row if bad is None else BadRowError(bad)


def _is_readable(path: Path) -> bool:
    return kind(path) in (TEXTS if path.suffix.lower() in PACKED else READERS)


def _check_kind(path: Path) -> str:
    if not _is_readable(path):
        raise UserError(f"{path}: {_kinds_told()}")
    return kind(path)


def _kinds_told() -> str:
    binary = [suffix for suffix in READERS if suffix not in TEXTS]
    return (
        f"rows are read from {', '.join(TEXTS)} files, which may be packed as {', '.join(PACKED)},"
        f" and from {' and '.join(binary)} files"
    )


def _jsonl(path: Path, columns: Collection[str] | None) -> Iterator[Placed]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                yield f"{path}:{number}", json_rows.as_row(json_rows.parsed(line))
            except BadRowError as problem:
                yield f"{path}:{number}", problem


def _lines(path: Path) -> Iterator[str | bytes]:
    """Lines that end with a line feed; of UTF-8 as bytes, so that a malformed one leaves the others readable."""
    if (name := encoding(path)) == "utf-8-sig":
        with unpacked(path) as stream:
            yield from stream
        return
    try:
        with unpacked(path) as stream:
            yield from io.TextIOWrapper(stream, name, newline="\n")
    except UnicodeError as error:
        raise UserError(f"{path}: not the {name.upper()} that its first bytes announce ({error})") from None


def _json(path: Path, columns: Collection[str] | None) -> Iterator[Placed]:
    try:
        with unpacked(path) as stream:
            for number, row in enumerate(json_rows.read(path, io.TextIOWrapper(stream, encoding(path))), 1):
                yield f"{path}:{number}", row
    except UnicodeError as error:
        number, why = _undecodable(path, error)
        raise UserError(f"{path}: malformed JSON in line {number} ({why})") from None


def _parquet(path: Path, columns: Collection[str] | None) -> Iterator[Placed]:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        read = wanted(str(path), names, columns)
        number = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=read):
            for row in arrow_rows(batch, names, read):
                number += 1
                yield f"{path}:{number}", row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def _arrow(path: Path, columns: Collection[str] | None) -> Iterator[Placed]:
    number = 0
    try:
        with pa.memory_map(str(path)) as source:
            for batch in _batches(source):
                names = batch.schema.names
                read = wanted(str(path), names, columns)
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    for row in arrow_rows(batch.slice(start, BATCH_ROWS), names, read):
                        number += 1
                        yield f"{path}:{number}", row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Arrow file ({first_line(error)})") from None


def _batches(source: Any) -> Iterator[pa.RecordBatch]:
    """Of a file, or of a stream, as `datasets` writes it."""
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    for number in range(file.num_record_batches):
        yield file.get_batch(number)


def _is_bad(cell: Any) -> bool:
    return isinstance(cell, BadRowError)


def _cells(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """A column's values; one that Python can't have, such as a date after the year 9999, is a BadRowError."""
    try:
        return column.to_pylist(maps_as_pydicts="strict")
    except Exception:  # each type refuses in a way of its own
        return [_cell(scalar) for scalar in column]


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except Exception as error:
        return BadRowError(f"{scalar.type}: {first_line(error)}")


def _csv(path: Path, columns: Collection[str] | None) -> Iterator[Placed]:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    line = 1
    delimiter = "\t" if kind(path) == ".tsv" else _delimiter(path)
    try:
        with unpacked(path) as stream:
            reader = csv.reader(io.TextIOWrapper(stream, encoding(path), newline=""), delimiter=delimiter, strict=True)
            header: list[str] | None = None
            for cells in reader:
                if cells and header is None:
                    header = cells
                    wanted(str(path), header, columns)
                elif cells and header:
                    yield f"{path}:{line}", _csv_row(header, cells)
                line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: malformed CSV ({error}; the row begins in this line)") from None
    except UnicodeError as error:
        number, why = _undecodable(path, error)
        raise UserError(f"{path}:{number}: malformed CSV ({why})") from None


def _csv_row(header: list[str], cells: list[str]) -> Row | BadRowError:
    if any(cells[len(header) :]):
        return BadRowError(
            f"it has {len(cells)} cells, but the header names {len(header)} columns: put a text that holds the"
            " delimiter in double quotes"
        )
    values: list[str | None] = [None if cell in NOT_A_NUMBER else cell for cell in cells]
    values += [None] * (len(header) - len(values))
    return dict(zip(header, values, strict=False))


def _delimiter(path: Path) -> str:
    """The first of DELIMITERS that parts the header into several cells: a comma in doubt."""
    with unpacked(path) as stream:
        try:
            text = io.TextIOWrapper(stream, encoding(path), newline="")
            header = next((line for line in text if line.strip()), "")
            return next(mark for mark in DELIMITERS if len(next(csv.reader([header], delimiter=mark), [])) > 1)
        except (StopIteration, UnicodeError):  # which the reader tells with its line
            return ","


def _text(path: Path, columns: Collection[str] | None) -> Iterator[Placed]:
    try:
        with unpacked(path) as stream:
            for number, line in enumerate(io.TextIOWrapper(stream, encoding(path)), 1):
                if line.strip():
                    yield f"{path}:{number}", {"prompt": line.strip()}
    except UnicodeError as error:
        number, why = _undecodable(path, error)
        raise UserError(f"{path}: not UTF-8 text (line {number}: {why})") from None


def _undecodable(path: Path, error: UnicodeError) -> tuple[int, str]:
    """The first line that is not in the file's encoding, and why: readers decode many lines at once."""
    if encoding(path) == "utf-8-sig":
        with unpacked(path) as stream:
            for number, line in enumerate(stream, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as found:
                    return number, str(found)
    return 1, str(error)


TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
READERS: dict[str, Callable[[Path, Collection[str] | None], Iterator[Placed]]] = {
    **dict(zip(TEXTS, (_jsonl, _jsonl, _json, _csv, _csv, _text), strict=True)),
    ".parquet": _parquet,
    ".arrow": _arrow,
}

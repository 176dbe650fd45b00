"""Rows of files and datasets, each with the place it came from."""

import csv
import json
import math
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import EvaluationSet, Source
from pipeline.errors import UserError
from pipeline.files import encoding_of, first_line

Row = dict[str, Any]
Placed = tuple[str, "Row | BadRowError"]  # where a row stands, and the row
UNREAD = object()  # the value of a column that nobody asked for
MAX_DEPTH = 100
MAX_CELL_CHARACTERS = (1 << 31) - 1
NOT_A_NUMBER = ("nan", "NaN", "-nan")  # as numpy, pandas, R and Python write into a CSV that there is no number
DELIMITERS = (",", ";", "\t")
BATCH_ROWS = 1024


class BadRowError(Exception):
    """A row that can't be used: what is wrong with it, without its place."""


def utf8(text: str) -> str:
    """A text that can be written: of half a surrogate pair, as JSON may have it, a question mark is left."""
    return text.encode(errors="replace").decode()


def read(source: Source | EvaluationSet, columns: Collection[str] | None = None) -> Iterator[Placed]:
    """`(place, row)` for each row of a source; one that can't be read comes as its BadRowError.

    Only the values of `columns` are converted, all if None; another column's may be UNREAD, and then its faults are
    no fault of the row. A number that is none (NaN) is null.

    Raises UserError if the file or dataset can't be opened, or has two columns with the name of one of `columns`.
    """
    rows = _dataset_rows(source, columns) if source.dataset else _file_rows(Path(source.path or ""), columns)
    for number, (place, row) in enumerate(rows):
        if source.limit is not None and number >= source.limit:
            return
        if isinstance(row, dict):
            try:
                row = {key: plain(row[key]) if columns is None or key in columns else row[key] for key in row}
            except BadRowError as problem:
                row = problem
        yield place, row


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON could have it: NaN is null, bytes that are UTF-8 are text, at any depth.

    Raises BadRowError if it is nested deeper than MAX_DEPTH.
    """
    if isinstance(value, list | tuple | dict):
        if depth == MAX_DEPTH:
            raise BadRowError(f"a value is nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return {key: plain(inner, depth + 1) for key, inner in value.items()}
        return [plain(inner, depth + 1) for inner in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return None if isinstance(value, float) and value != value else value


def parsed(text: str | bytes) -> Any:
    """What JSON says; NaN is null, and a number that Python lacks is the text that stands there.

    Raises BadRowError if it is malformed.
    """
    try:
        return JSON.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRowError(f"malformed JSON ({first_line(error)})") from None


def _integer(digits: str) -> int | str:
    limit = sys.get_int_max_str_digits()
    return digits if limit and len(digits) > limit else int(digits)


def _real(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits


JSON = json.JSONDecoder(
    parse_int=_integer, parse_float=_real, parse_constant=lambda name: None if name == "NaN" else name
)


def _file_rows(path: Path, columns: Collection[str] | None) -> Iterator[Placed]:
    readers = {".jsonl": _jsonl, ".parquet": _parquet, ".csv": _csv, ".txt": _text}
    kind = path.suffix.lower()
    if kind not in readers:
        raise UserError(f"{path}: rows are read from {', '.join(readers)} files")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    yield from readers[kind](path, columns)


def _jsonl(path: Path, columns: Collection[str] | None) -> Iterator[Placed]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = parsed(line)
        except BadRowError as problem:
            yield f"{path}:{number}", problem
            continue
        yield f"{path}:{number}", row if isinstance(row, dict) else BadRowError("not a JSON object")


def _lines(path: Path) -> Iterator[str | bytes]:
    """Lines that end with a line feed; of UTF-8 as bytes, so that a malformed one leaves the others readable."""
    encoding = encoding_of(path)
    if encoding == "utf-8-sig":
        with path.open("rb") as stream:
            yield from stream
        return
    try:
        with path.open(encoding=encoding, newline="\n") as stream:
            yield from stream
    except UnicodeError as error:
        raise UserError(f"{path}: can't be read as {encoding.upper()}, as its first bytes say ({error})") from None


def _parquet(path: Path, columns: Collection[str] | None) -> Iterator[Placed]:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        wanted = _wanted(str(path), names, columns)
        number = 0
        for batch in file.iter_batches(columns=wanted):
            for row in _arrow_rows(batch, names, wanted):
                number += 1
                yield f"{path}:{number}", row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def _wanted(origin: str, names: list[str], columns: Collection[str] | None) -> list[str]:
    """The names that are among `columns`. Raises UserError if one of them is two columns'."""
    wanted = [name for name in names if columns is None or name in columns]
    if twice := next((name for name in wanted if wanted.count(name) > 1), None):
        raise UserError(f"{origin}: two columns are called {twice!r}; rename or remove one")
    return wanted


def _arrow_rows(table: pa.RecordBatch | pa.Table, names: list[str], wanted: list[str]) -> Iterator[Row | BadRowError]:
    cells = {name: _cells(table.column(name)) for name in wanted}
    for place in range(table.num_rows):
        row = {name: cells[name][place] if name in cells else UNREAD for name in names}
        bad = next((f"column {name!r} can't be read: {row[name]}" for name in wanted if _is_bad(row[name])), None)
        yield row if bad is None else BadRowError(bad)


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
    try:
        with path.open(encoding=encoding_of(path), newline="") as stream:
            reader = csv.reader(stream, delimiter=_delimiter(path), strict=True)
            header: list[str] | None = None
            for cells in reader:
                if cells and header is None:
                    header = cells
                    _wanted(str(path), header, columns)
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
    with path.open(encoding=encoding_of(path), newline="") as stream:
        header = next((line for line in stream if line.strip()), "")
    try:
        return next(mark for mark in DELIMITERS if len(next(csv.reader([header], delimiter=mark), [])) > 1)
    except StopIteration:
        return ","


def _text(path: Path, columns: Collection[str] | None) -> Iterator[Placed]:
    try:
        with path.open(encoding=encoding_of(path)) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path}:{number}", {"prompt": line.strip()}
    except UnicodeError as error:
        number, why = _undecodable(path, error)
        raise UserError(f"{path}: not UTF-8 text (line {number}: {why})") from None


def _undecodable(path: Path, error: UnicodeError) -> tuple[int, str]:
    """The first line that is not in the file's encoding, and why: readers decode many lines at once."""
    if encoding_of(path) == "utf-8-sig":
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as found:
                    return number, str(found)
    return 1, str(error)


def _dataset_rows(source: Source | EvaluationSet, columns: Collection[str] | None) -> Iterator[Placed]:
    from datasets import load_dataset

    number = 0
    try:
        rows = load_dataset(source.dataset or "", source.subset, split=source.dataset_split, streaming=True)
        names = rows.column_names  # None if only the rows tell
        if names is not None:
            rows = rows.select_columns(_wanted(f"dataset {source.dataset}", names, columns))
        # as Arrow, so that no column is decoded that nobody asked for, such as a picture
        tables: Any = rows.with_format("arrow").iter(min(BATCH_ROWS, source.limit or BATCH_ROWS))
        for table in tables:
            wanted = _wanted(f"dataset {source.dataset}", table.column_names, columns)
            for row in _arrow_rows(table, names or table.column_names, wanted):
                yield f"{source.dataset}:{number}", row
                number += 1
    except UserError:
        raise
    except Exception as error:  # `datasets` raises its builders' own exceptions
        raise UserError(f"dataset {source.dataset}: can't be read ({first_line(error)})") from None

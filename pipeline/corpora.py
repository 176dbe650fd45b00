"""Rows of files and datasets, each with the place it came from."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import EvaluationSet, Source
from pipeline.errors import UserError

Row = dict[str, Any]


class BadRowError(Exception):
    """A row that can't be used: what is wrong with it, without its place."""


def utf8(text: str) -> str:
    """A text that can be written: of half a surrogate pair, as JSON may have it, a question mark is left."""
    return text.encode(errors="replace").decode()


def read(source: Source | EvaluationSet) -> Iterator[tuple[str, Row | BadRowError]]:
    """`(place, row)` for each row of a source; a line that can't be parsed comes as its BadRowError.

    Raises UserError where the file or dataset can't be opened.
    """
    rows = _dataset_rows(source) if source.dataset else _file_rows(Path(source.path or ""))
    for number, item in enumerate(rows):
        if source.limit is not None and number >= source.limit:
            return
        yield item


def _file_rows(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    readers = {".jsonl": _jsonl, ".parquet": _parquet, ".csv": _csv, ".txt": _text}
    if path.suffix not in readers:
        raise UserError(f"{path}: rows are read from {', '.join(readers)} files")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    yield from readers[path.suffix](path)


def _jsonl(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                yield f"{path}:{number}", BadRowError(f"malformed JSON ({error})")
                continue
            yield f"{path}:{number}", row if isinstance(row, dict) else BadRowError("not a JSON object")


def _parquet(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except (pa.ArrowException, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: not a readable Parquet file ({first})") from None


def _csv(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for row in reader:
                yield (
                    f"{path}:{reader.line_num}",
                    {key: value for key, value in row.items() if key is not None},
                )
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}:{reader.line_num}: malformed CSV ({error})") from None


def _text(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    with path.open(encoding="utf-8-sig") as stream:
        try:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path}:{number}", {"prompt": line.strip()}
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text ({error})") from None


def _dataset_rows(source: Source | EvaluationSet) -> Iterator[tuple[str, Row | BadRowError]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source.dataset or "", source.subset, split=source.dataset_split, streaming=True)
        for number, row in enumerate(rows):
            yield f"{source.dataset}:{number}", dict(row)
    except Exception as error:  # `datasets` raises its builders' own exceptions
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"dataset {source.dataset}: can't be read ({first})") from None

"""Rows of files, folders and datasets, each with the place it came from."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pipeline.config import EvaluationSet, Source
from pipeline.corpora import containers
from pipeline.corpora.containers import BATCH_ROWS, UNREAD, Placed
from pipeline.corpora.json_rows import BadRowError, Row, parsed
from pipeline.errors import UserError
from pipeline.run.files import first_line

__all__ = ["MAX_DEPTH", "UNREAD", "BadRowError", "Placed", "Row", "files_of", "parsed", "plain", "read", "utf8"]
MAX_DEPTH = 100


def utf8(text: str) -> str:
    """A text that can be written: of half a surrogate pair, as JSON may have it, a question mark is left."""
    return text.encode(errors="replace").decode()


def files_of(source: Source | EvaluationSet) -> list[Path]:
    """The files that a source with a `path` is read from; none of one with a `dataset`. Raises as containers.files."""
    return [] if source.path is None else containers.files(source.path)


def read(source: Source | EvaluationSet, columns: Collection[str] | None = None) -> Iterator[Placed]:
    """`(place, row)` for each row of a source; one that can't be read comes as its BadRowError.

    Only the values of `columns` are converted, all if None; another column's may be UNREAD, and then its faults are
    no fault of the row. A number that is none (NaN) is null.

    Raises UserError if the file or dataset can't be opened, or has two columns with the name of one of `columns`.
    """
    for number, (place, row) in enumerate(_rows(source, columns)):
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


def _rows(source: Source | EvaluationSet, columns: Collection[str] | None) -> Iterator[Placed]:
    if source.path is None or containers.is_saved(Path(source.path)):
        yield from _dataset_rows(source, columns)
        return
    for path in containers.files(source.path):
        yield from containers.rows(path, columns)


def _dataset_rows(source: Source | EvaluationSet, columns: Collection[str] | None) -> Iterator[Placed]:
    name, number = source.dataset or source.path, 0
    try:
        rows = _dataset(source)
        names = rows.column_names  # None if only the rows tell
        if names is not None:
            rows = rows.select_columns(containers.wanted(f"dataset {name}", names, columns))
        # as Arrow, so that no column is decoded that nobody asked for, such as a picture
        tables: Any = rows.with_format("arrow").iter(min(BATCH_ROWS, source.limit or BATCH_ROWS))
        for table in tables:
            read = containers.wanted(f"dataset {name}", table.column_names, columns)
            for row in containers.arrow_rows(table, names or table.column_names, read):
                yield f"{name}:{number}", row
                number += 1
    except UserError:
        raise
    except Exception as error:  # `datasets` raises its builders' own exceptions
        raise UserError(f"dataset {name}: can't be read ({first_line(error)})") from None


def _dataset(source: Source | EvaluationSet) -> Any:
    """A dataset of `datasets`: streamed, or on this disk where it was saved or only a part of a split is wanted."""
    from datasets import load_dataset

    name = source.dataset or source.path or ""
    if containers.is_saved(Path(name)):
        return _saved(name, source.dataset_split)
    return load_dataset(
        name,
        source.subset,
        split=source.dataset_split,
        streaming="[" not in source.dataset_split,  # a stream can't be sliced
        revision=source.revision,
        data_files=list(source.data_files) or None,
    )


def _saved(folder: str, split: str) -> Any:
    """A split of a `save_to_disk` folder, or a part of it; a folder without splits has the one that is asked for."""
    from datasets import Dataset, ReadInstruction, concatenate_datasets, load_from_disk

    found = load_from_disk(folder)
    splits = {re.split(r"[\[+]", split)[0]: found} if isinstance(found, Dataset) else dict(found)
    parts = ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in splits.items()})
    return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])

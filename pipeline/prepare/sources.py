"""Rows from files and datasets, each with the place it came from; and the messages a row means."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from pipeline.config import Source
from pipeline.errors import UserError

Row = dict[str, Any]
Messages = list[dict[str, str]]
ROLES = ("system", "user", "assistant")


class BadRowError(Exception):
    """A row that gives no prompt: what is wrong with it, without its place."""


def read(source: Source) -> Iterator[tuple[str, Row | BadRowError]]:
    """`(place, row)` for each row of a source; a line that can't be parsed comes as its BadRowError.

    Raises UserError where the file or dataset can't be opened.
    """
    rows = _dataset_rows(source) if source.dataset else _file_rows(Path(source.path or ""))
    for number, item in enumerate(rows):
        if source.limit is not None and number >= source.limit:
            return
        yield item


def load_template(path: str | None) -> Template | None:
    """The Jinja template of a source. Raises UserError where it is missing or malformed."""
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
        return SandboxedEnvironment(undefined=StrictUndefined).from_string(text)
    except OSError:
        raise UserError(f"{path}: no such prompt template") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a prompt template in UTF-8") from None
    except TemplateError as error:
        raise UserError(f"{path}: malformed Jinja template: {error}") from None


def messages_of(row: Row, source: Source, template: Template | None) -> Messages:
    """The conversation that a row asks the teacher to go on with, up to its last user message.

    Raises BadRowError where there is none.
    """
    if template is not None:
        try:
            messages: Any = [{"role": "user", "content": template.render(row)}]
        except Exception as error:  # a template is a program: a filter may raise anything
            raise BadRowError(f"the template can't be filled: {error}") from None
    elif row.get(source.messages) is not None:
        messages = row[source.messages]
        if isinstance(messages, str):  # a CSV cell
            try:
                messages = json.loads(messages)
            except json.JSONDecodeError:
                raise BadRowError(f"column {source.messages!r} is no JSON list of messages") from None
    elif source.prompt in row:
        messages = [{"role": "user", "content": row[source.prompt]}]
    else:
        raise BadRowError(
            f"no column {source.messages!r} or {source.prompt!r} (the row has: {', '.join(map(str, row))});"
            " name yours in the source's `prompt`"
        )
    _check_messages(messages)
    messages = [{"role": m["role"], "content": m["content"]} for m in messages]
    while messages and messages[-1]["role"] == "assistant":  # an answer that the corpus has: the teacher gives its own
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        raise BadRowError("no user message to answer at the end of the conversation")
    if source.system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": source.system})
    return messages


def category_of(row: Row, source: Source) -> str:
    """The row's label, halves of surrogate pairs replaced."""
    return str(row.get(source.category) or "uncategorised").encode(errors="replace").decode()


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadRowError("messages is no list of {role, content}")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadRowError(f"a message's role must be one of {', '.join(ROLES)}")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            raise BadRowError(f"a {message['role']} message's content is no text (its type: {type(content).__name__})")
        if content is None or not content.strip():
            raise BadRowError(f"empty prompt: a {message['role']} message has no text")
        if not message["content"].isprintable() and not _is_encodable(message["content"]):
            raise BadRowError("a message is not valid Unicode (half of a surrogate pair)")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _file_rows(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    readers = {".jsonl": _jsonl, ".parquet": _parquet, ".csv": _csv, ".txt": _text}
    if path.suffix not in readers:
        raise UserError(f"{path}: prompts are read from {', '.join(readers)} files")
    if not path.is_file():
        raise UserError(f"{path}: no such file of prompts")
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


def _dataset_rows(source: Source) -> Iterator[tuple[str, Row | BadRowError]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source.dataset or "", source.subset, split=source.dataset_split, streaming=True)
        for number, row in enumerate(rows):
            yield f"{source.dataset}:{number}", dict(row)
    except Exception as error:  # `datasets` raises its builders' own exceptions
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"dataset {source.dataset}: can't be read ({first})") from None

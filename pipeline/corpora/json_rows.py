"""Rows of JSON: what a text says, and files of JSON read a row at a time.

A .json file holds an array, objects one after another, or one object in which a single list of objects holds the rows.
`datasets` reads such a file as a whole, and gives all its rows the same types; here a row stands for itself.
"""

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import UserError
from pipeline.run.files import first_line

Row = dict[str, Any]
CHUNK = 1 << 18  # characters
MAX_ROW_CHARACTERS = 1 << 26
MAX_WHOLE_CHARACTERS = 1 << 20  # of the first object of a file: a longer one is not a row, but holds the rows
OWN_LISTS = ("tools", "functions")  # lists of objects that are a row's own; those of messages are told by their roles
_SPACE = re.compile(r"[ \t\r\n]*")
_ENDS = tuple(" \t\r\n,]}")  # what may follow a number; after the 0 of 0.5 more is to be read
_NAMES = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


class BadRowError(Exception):
    """A row that can't be used: what is wrong with it, without its place."""


def parsed(text: str | bytes) -> Any:
    """What JSON says; NaN is null, and a number that Python lacks is the text that stands there.

    Raises BadRowError if it is malformed.
    """
    try:
        return JSON.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRowError(f"malformed JSON ({first_line(error)})") from None


def as_row(value: Any) -> Row | BadRowError:
    """A value as a row, which is an object."""
    if isinstance(value, dict):
        return value
    return BadRowError(f"not a JSON object, but {_NAMES.get(type(value), 'null')}")


def read(path: Path, stream: TextIO) -> Iterator[Row | BadRowError]:
    """The rows of a .json file. Raises UserError with the line where it is malformed."""
    text = _Text(path, stream)
    if text.peek() == "{":
        first = text.value(MAX_WHOLE_CHARACTERS)
        if first is None:
            yield from _members(path, text)
        else:
            yield from map(as_row, [first] if text.peek() else _within(path, first))
    while mark := text.peek():
        if mark == "[":
            yield from map(as_row, _elements(text))
        else:
            yield as_row(text.value())


class _Text:
    """The text of a file, of which no more than some rows are in memory."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self._path, self._stream = path, stream
        self._buffer, self._at, self._line, self._is_whole = "", 0, 1, False

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if self._is_whole:
                return ""
            self._read_on()

    def skip(self, marks: str) -> str:
        """Go over the next character, which must be one of `marks`, and return it."""
        mark = self.peek()
        if not mark or mark not in marks:
            raise self._malformed(f"expecting {' or '.join(marks)}", self._at)
        self._at += 1
        return mark

    def value(self, most: int | None = None) -> Any:
        """The next value; None if it takes more than `most` characters, and then it is still the next one."""
        self.peek()
        while True:
            told, place = "a number without an end", self._at
            try:
                value, end = JSON.raw_decode(self._buffer, self._at)
                if self._is_whole or self._buffer[end - 1] in '}]"' or self._buffer[end : end + 1] in _ENDS:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                told, place = error.msg, error.pos  # kept itself, it would hold the buffer
            except RecursionError as error:
                raise self._malformed(first_line(error), self._at) from None
            length = len(self._buffer) - self._at
            if most is not None and length > most and not self._is_whole:
                return None
            if self._is_whole or length > MAX_ROW_CHARACTERS:
                raise self._malformed(told, place)
            self._read_on()

    def _read_on(self) -> None:
        """At least as much again as there is, so that a long row is not parsed many times."""
        left = self._buffer[self._at :]
        self._line += self._buffer.count("\n", 0, self._at)
        more = self._stream.read(max(CHUNK, len(left)))
        self._buffer, self._at, self._is_whole = left + more, 0, not more

    def _malformed(self, told: str, place: int) -> UserError:
        line = self._line + self._buffer.count("\n", 0, place)
        return UserError(f"{self._path}: malformed JSON in line {line} ({told})")


def _elements(text: _Text) -> Iterator[Any]:
    text.skip("[")
    if text.peek() == "]":
        text.skip("]")
        return
    while True:
        yield text.value()
        if text.skip(",]") == "]":
            return


def _members(path: Path, text: _Text) -> Iterator[Row | BadRowError]:
    """The rows in an object that is too long to be held: those of its one list of objects."""
    text.skip("{")
    names: list[str] = []
    while True:
        name = text.value()
        text.skip(":")
        if text.peek() == "[":
            are_rows = False
            for number, element in enumerate(_elements(text)):
                if number == 0 and _holds_rows(name, [element]):
                    are_rows, names = True, [*names, name]
                    _check_one(path, names)
                if are_rows:
                    yield as_row(element)
        else:
            text.value()
        if text.skip(",}") == "}":
            break
    if not names:
        raise UserError(
            f"{path}: its first object is longer than {MAX_WHOLE_CHARACTERS:,} characters, and holds no list of rows"
        )


def _within(path: Path, whole: Any) -> list[Any]:
    """The rows in the only value of a file: those in its list of objects, or the value itself."""
    lists = {name: value for name, value in whole.items() if _holds_rows(name, value)}
    if not lists:
        return [whole]
    _check_one(path, list(lists))
    return next(iter(lists.values()))


def _holds_rows(name: str, value: Any) -> bool:
    if name in OWN_LISTS or not isinstance(value, list) or not value:
        return False
    return all(isinstance(each, dict) and not {"role", "from"} & each.keys() for each in value)


def _check_one(path: Path, names: list[str]) -> None:
    if len(names) > 1:
        told = f"its lists {names[0]!r} and {names[1]!r} may both hold the rows"
        raise UserError(f"{path}: {told}; write each to a file of its own")


def _integer(digits: str) -> int | str:
    limit = sys.get_int_max_str_digits()
    return digits if limit and len(digits) > limit else int(digits)


def _real(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits


JSON = json.JSONDecoder(
    parse_int=_integer, parse_float=_real, parse_constant=lambda name: None if name == "NaN" else name
)

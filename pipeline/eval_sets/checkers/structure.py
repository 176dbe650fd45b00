"""Checks of layout: lists, titles, tables, sections, code, JSON."""

import ast
import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.eval_sets.checkers.wording import Count, Text, Texts, plain, within

JsonType = Literal["string", "integer", "number", "boolean", "array", "object", "null"]
_BULLET = re.compile(r"^[ \t]*[-*+•][ \t]+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*\**(\d+)[.)]\**[ \t]+\S", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\w[^\[\]\n]*\](?!\()")  # a link's text is none
_FENCE = re.compile(r"^```[ \t]*(\S*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\s*\|.*\|\s*$")
_RULE = re.compile(r"^\s*\|(?:\s*:?-+:?\s*\|)+\s*$")
_NO_JSON = object()


def num_bullets(answer: str, low: Count | None = None, high: Count | None = None) -> bool:
    """So many bullet points."""
    return within(len(_BULLET.findall(answer)), low, high)


def numbered_list(answer: str, low: Count | None = None, high: Count | None = None) -> bool:
    """A list numbered 1, 2, 3, ... of so many entries."""
    numbers = [int(number) for number in _NUMBERED.findall(answer)]
    return within(len(numbers), low, high) and numbers == list(range(1, len(numbers) + 1)) != []


def title(answer: str, opening: Text, closing: str = "") -> bool:
    """The first line is a title between these marks (`<<`, `>>`; or `# ` alone), and a text comes after it."""
    first, _, rest = plain(answer).partition("\n")
    first = first.strip()
    inside = first.removeprefix(opening).removesuffix(closing) if first.startswith(opening) else ""
    return first.endswith(closing) and bool(inside.strip()) and bool(rest.strip())


def postscript(answer: str, marker: Text) -> bool:
    """The last line begins with the marker, such as `P.S.`, and says something."""
    lines = [line.strip(" \t*_") for line in answer.strip().splitlines() if line.strip()]
    return len(lines) > 1 and lines[-1].startswith(marker) and bool(re.search(r"\w", lines[-1][len(marker) :]))


def placeholders(answer: str, low: Count | None = None, high: Count | None = None) -> bool:
    """So many blanks to fill in, in square brackets."""
    return within(len(_PLACEHOLDER.findall(answer)), low, high)


def sections(answer: str, separator: Text, num: Annotated[int, Field(ge=2)]) -> bool:
    """So many parts that say something, with the separator between them."""
    parts = answer.split(separator)
    return len(parts) == num and all(re.search(r"\w", part) for part in parts)


def line_initials(answer: str, letters: Text) -> bool:
    """The lines, of those that say something, begin with these letters in turn: an acrostic."""
    firsts = [re.search(r"[^\W\d_]", line) for line in answer.splitlines()]
    return "".join(first[0] for first in firsts if first).casefold() == letters.casefold()


def table(
    answer: str, columns: Annotated[int, Field(ge=1)], low: Count | None = None, high: Count | None = None
) -> bool:
    """One Markdown table of so many columns, and of so many rows below its header."""
    lines = [line.strip() for line in answer.splitlines() if _ROW.match(line)]
    in_range = within(max(len(lines) - 2, 0), low, high)
    widths = {len(line.strip("|").split("|")) for line in lines}
    return in_range and len(lines) > 1 and bool(_RULE.match(lines[1])) and widths == {columns}


def code_fence(answer: str, languages: Texts, alone: bool = False) -> bool:
    """A code block fenced by ``` and marked as of one of these languages; `alone`: nothing but one such block."""
    fences = list(_FENCE.finditer(answer))
    marked = [fence for fence in fences if fence[1].casefold() in {name.casefold() for name in languages}]
    return bool(marked) and (not alone or (len(fences) == 1 and fences[0][0].strip() == answer.strip()))


def python_defines(answer: str, name: Text) -> bool:
    """Its code, that in fences or else all of it, is valid Python and defines a function or class of this name."""
    source = "\n".join(fence[2] for fence in _FENCE.finditer(answer)) or answer
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # deep nesting, null bytes
        return False
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, definitions) and node.name == name for node in tree.body)


def json_object(answer: str, keys: dict[str, JsonType], only: bool = True) -> bool:
    """One JSON object with values of these types under these keys, and, with `only`, no other keys."""
    if not keys:
        raise ValueError("keys: name at least one")
    value = _json(answer)
    if not isinstance(value, dict) or (only and value.keys() != keys.keys()):
        return False
    return all(key in value and _is_a(value[key], kind) for key, kind in keys.items())


def json_array(answer: str, of: JsonType, low: Count | None = None, high: Count | None = None) -> bool:
    """One JSON array of so many values of this type."""
    value = _json(answer)
    values = value if isinstance(value, list) else []
    in_range = within(len(values), low, high)
    return in_range and isinstance(value, list) and all(_is_a(each, of) for each in values)


def json_equals(answer: str, value: Any) -> bool:
    """One JSON value, this one: keys in any order, 2 equals 2.0, and texts may differ in case."""
    return _same(_json(answer), value)


def _json(answer: str) -> Any:
    """The value that is all of the answer, or all of its one code block; _NO_JSON where there is none."""
    text = answer.strip()
    fences = _FENCE.findall(text)
    if len(fences) == 1 and text.startswith("```") and text.endswith("```"):
        text = fences[0][1]
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NO_JSON


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _is_a(value: Any, kind: JsonType) -> bool:
    if kind in ("integer", "number"):
        return not isinstance(value, bool) and isinstance(value, int if kind == "integer" else (int, float))
    types = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}
    return isinstance(value, types[kind])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.strip().casefold() == other.strip().casefold()
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other

"""Jinja templates that make the texts a model is asked: those of sources, of synthesis and of the judge.

A null is shown as nothing, and so is a number that is none (NaN): neither is a word of anybody's. It has no attributes
and can't be reckoned with; `default(...)` replaces it, `is none` is true of it and `is defined` false, as of a column
that a row lacks. Lists and objects are shown as JSON.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, Undefined, UndefinedError, meta
from jinja2.sandbox import SandboxedEnvironment

from pipeline.data import shipped
from pipeline.errors import UserError

MAX_NAMES, MAX_NAME_CHARACTERS, MAX_REASON_CHARACTERS = 30, 40, 300


class FillError(Exception):
    """Why a template can't be filled, in one line."""


class NullError(UndefinedError):
    """What comes of reckoning with a null."""


class Null(Undefined):
    """A null in a template."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        super().__init__(hint=f"{name!r} is null", name=name, exc=NullError)

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Null)

    def __hash__(self) -> int:
        return hash(None)

    def __repr__(self) -> str:
        return "null"

    def __int__(self) -> int:
        raise TypeError("a null is not a number")  # as None does: the filters `int` and `float` have a default for it

    def __float__(self) -> float:
        raise TypeError("a null is not a number")


class Missing(StrictUndefined):
    """A variable that is not there, or a field that an object lacks."""

    __slots__ = ()

    def __init__(self, hint: str | None = None, obj: Any = None, name: Any = None, exc: Any = UndefinedError) -> None:
        called = repr(name) if isinstance(name, str) else f"element {name}"
        super().__init__(hint=hint or f"{called} is undefined", obj=obj, name=name, exc=exc)


@dataclass(frozen=True)
class PromptTemplate:
    """A template, its text, and the names of the variables that it uses."""

    path: str
    text: str
    variables: frozenset[str]
    compiled: Template

    def fill(self, values: Mapping[str, Any], columns: Iterable[str] | None = None) -> str:
        """The text that comes of these variables, of which those that it does not use are not looked at.

        Raises FillError. If a variable is undefined, it lists those that are: the `columns` of a row, or the values.
        """
        used = {name: _shielded(values[name], name) for name in self.variables & values.keys()}
        try:
            return self.compiled.render(used)
        except NullError as error:
            raise FillError(str(error)) from None
        except UndefinedError as error:
            names = list(values if columns is None else columns)
            called = "its variables" if columns is None else "its variables are the row's columns"
            raise FillError(f"{error}; {called}: {listed(names)}{hint(_missing(error), names)}") from None
        except Exception as error:  # a template is a program: a filter may raise anything
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FillError(first[:MAX_REASON_CHARACTERS]) from None


def load(path: str | Path, setting: str, **syntax: bool) -> PromptTemplate:
    """A template; `syntax` is jinja2's, such as trim_blocks. Raises UserError where it is missing or malformed."""
    try:
        text = shipped.find(path).read_text(encoding="utf-8-sig")
        compiled = _environment(**syntax).from_string(text)
        return PromptTemplate(str(path), text, _variables(text), compiled)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a prompt template in UTF-8 ({setting})") from None
    except OSError as error:
        raise UserError(f"{path}: no such prompt template ({error.strerror}; {setting})") from None
    except Exception as error:  # beside Jinja's own, those of expressions that it works out at once
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: malformed Jinja template: {first} ({setting})") from None


def listed(names: Iterable[Any]) -> str:
    """Names for an error, cut where they are many or long."""
    shown = [_short(str(name)) for name in names]
    more = f" and {len(shown) - MAX_NAMES} more" if len(shown) > MAX_NAMES else ""
    return ", ".join(shown[:MAX_NAMES]) + more


def hint(name: str, names: Iterable[Any]) -> str:
    """Which of the names may have been meant, for the end of an error; empty if none is near."""
    meant = difflib.get_close_matches(name, [str(each) for each in names], n=1, cutoff=0.6)
    return f"; did you mean {_short(meant[0])}?" if meant else ""


def is_null(value: Any) -> bool:
    """Whether a value is null, or a number that is none."""
    return value is None or isinstance(value, Null) or (isinstance(value, float) and math.isnan(value))


def _environment(**syntax: bool) -> SandboxedEnvironment:
    environment = SandboxedEnvironment(undefined=Missing, finalize=_shown, **syntax)
    environment.tests["none"] = is_null
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": _json}
    return environment


def _variables(text: str) -> frozenset[str]:
    """The names that a template takes from outside, those of Jinja's own functions too: a column may be `range`."""
    environment = SandboxedEnvironment()
    environment.globals.clear()
    return frozenset(meta.find_undeclared_variables(environment.parse(text)))


def _shielded(value: Any, name: str) -> Any:
    """A value whose nulls are Null, at any depth."""
    if is_null(value):
        return Null(name)
    if isinstance(value, Mapping):
        return {key: _shielded(inner, str(key)) for key, inner in value.items()}
    return [_shielded(inner, name) for inner in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> Any:
    """What a template writes for a value."""
    if is_null(value):
        return ""
    if isinstance(value, bytes):
        raise ValueError("binary data is not text")
    return json.dumps(value, ensure_ascii=False, default=_json) if isinstance(value, list | tuple | dict) else value


def _json(value: Any) -> Any:
    """Null, or an object that JSON has not, such as a date, as its text."""
    return None if is_null(value) else str(value)


def _missing(error: UndefinedError) -> str:
    found = re.findall(r"'([^']*)' is undefined", str(error))
    return found[0] if found else ""


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= MAX_NAME_CHARACTERS else f"{name[:MAX_NAME_CHARACTERS]}…"

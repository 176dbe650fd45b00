"""YAML and `key=value` overrides as a plain tree. The field decides what an unquoted word or number means.

A text field takes the text as it was typed: `name: 2024` is "2024", `revision: 7e10583` is not a float, and `no`
in a list of languages is Norwegian. Any other field takes what YAML says, and reads `1e-5` as a number.
"""

import contextlib
import copy
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from pipeline.errors import UserError

NULLS = ("", "~", "null", "Null", "NULL")
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
INTEGER = re.compile(r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)$")
FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$")
SPECIAL = re.compile(r"[-+]?\.inf$|\.nan$", re.IGNORECASE)
NUMBER = re.compile("|".join(f"(?:{each.pattern})" for each in (INTEGER, FLOAT)))
EXAMPLE = "write section.key=value, e.g. train.learning_rate=1e-5"


class Plain(str):
    """A scalar without quotes, as it was typed."""


class _Loader(yaml.SafeLoader):
    """Leaves plain scalars as they were typed, and refuses a key that is given twice."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<$"))]}  # noqa: RUF012 - as PyYAML has it

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _scalar(_: _Loader, node: yaml.ScalarNode) -> str:
    return Plain(node.value) if node.style is None else node.value


_Loader.add_constructor("tag:yaml.org,2002:str", _scalar)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that looks like a number, for fields that take either."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789."))


def dump(data: Any, **layout: Any) -> str:
    """YAML that `read` reads back to the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **layout)


def read(path: Path, overrides: list[str] | tuple[str, ...], defaults: dict[str, Any], model: type[BaseModel]) -> Any:
    """The file's mapping, with `defaults` over it and the overrides over both.

    Raises UserError for a file that can't be read, malformed YAML, or an override that is none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    tree = parse(text, str(path))
    if tree is None or (isinstance(tree, Plain) and tree in NULLS):
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections, such as `teacher:` and `train:`")
    tree |= defaults
    for override in overrides:
        _put(tree, override)
    try:
        return settled(tree, model)
    except RecursionError:  # a reference (&a, *a) to what it stands in
        raise UserError(f"{path}: a reference (`*`) refers to itself; write the value out") from None


def parse(text: str, place: str, is_override: bool = False) -> Any:
    """The YAML, plain scalars as `Plain`. Raises UserError with the place and the line, and how to mend it."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if is_override or mark is None else f", line {mark.line + 1}"
        wrong = _what_is_wrong(error, text)
        hint = "; put the whole override in quotes, or the shell splits it" if is_override else ""
        raise UserError(f"{place}{line}: {wrong}{hint if 'is not closed' in wrong else ''}") from None
    except yaml.reader.ReaderError as error:
        line = "" if is_override else f", line {text.count(chr(10), 0, error.position) + 1}"
        character = f"U+{error.character:04X}" if isinstance(error.character, int) else repr(error.character)
        raise UserError(f"{place}{line}: YAML can't hold the character {character}; remove it") from None
    except RecursionError:
        raise UserError(f"{place}: nested too deeply") from None
    except (ValueError, TypeError) as error:  # of an explicit tag, such as !!int x
        raise UserError(f"{place}: a tag does not fit its value ({error}); remove tags such as !!int") from None


def settled(value: Any, annotation: Any) -> Any:
    """The tree with each plain scalar as the field that it is for takes it."""
    arms = members(annotation)
    if isinstance(value, Plain):
        if value == "" or (value in NULLS and types.NoneType in arms):
            return None
        return str(value) if any(map(_is_text, arms)) else _resolved(value)
    if isinstance(value, dict):
        section = next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel)), None)
        fields = {name: field.annotation for name, field in section.model_fields.items()} if section else {}
        others = next((get_args(arm)[1] for arm in arms if get_origin(arm) is dict), Any)
        return {
            str(key) if isinstance(key, str) else key: settled(item, fields.get(key, others))
            for key, item in value.items()
        }
    if isinstance(value, list):
        of_list = next((get_args(arm) for arm in arms if get_origin(arm) is tuple), ())
        if len(of_list) == len(value) and Ellipsis not in of_list:
            return [settled(item, each) for item, each in zip(value, of_list, strict=True)]
        return [settled(item, of_list[0] if of_list else Any) for item in value]
    return value


def members(annotation: Any) -> list[Any]:
    """What a field may be: the members of a union, each without its constraints."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [arm for each in get_args(annotation) for arm in members(each)]
    return [annotation]


def _is_text(arm: Any) -> bool:
    return arm is str or (get_origin(arm) is Literal and all(isinstance(each, str) for each in get_args(arm)))


def _resolved(text: str) -> Any:
    """What YAML says that a plain scalar is; leading zeros don't make a number octal."""
    lower = text.lower()
    if text in NULLS:
        return None
    if lower in TRUE or lower in FALSE:
        return lower in TRUE
    with contextlib.suppress(ValueError):  # digits and signs in an order that is not a number, or far too many of them
        if INTEGER.match(text):
            digits = lower.replace("_", "")
            return int(digits, 0) if re.match(r"[-+]?0[xob]", digits) else int(digits)
        if FLOAT.match(text):
            return float(text.replace("_", ""))
        if SPECIAL.match(text):
            return float(lower.replace(".", ""))
    return str(text)


def _put(tree: dict[str, Any], override: str) -> None:
    """Set what an override says. A mapping joins the one that is there; all else takes its place."""
    name, is_set, text = override.partition("=")
    parts = re.sub(r"\[(\d+)\]", r".\1", name.strip()).split(".")
    if not is_set or not all(re.fullmatch(r"[\w-]+", part) for part in parts):
        raise UserError(f"{override!r} is not an override: {EXAMPLE}")
    value = parse(text, f"override {override!r}", is_override=True)
    node: Any = tree
    for place, part in enumerate(parts):
        key: Any = part
        if isinstance(node, list):
            key = _index(node, part, ".".join(parts[:place]), override)
        if place == len(parts) - 1:
            old = node.get(key) if isinstance(node, dict) else node[key]
            node[key] = _merged(old, value)
        else:
            inner = node.get(key) if isinstance(node, dict) else node[key]
            node[key] = node = copy.copy(inner) if isinstance(inner, dict | list) else {}  # a reference may share it


def _index(node: list[Any], part: str, name: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        entries = "1 entry" if len(node) == 1 else f"{len(node)} entries"
        raise UserError(f"override {override!r}: {name} is a list of {entries}; {name}.0 is the first")
    return int(part)


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def _what_is_wrong(error: yaml.MarkedYAMLError, text: str) -> str:
    """PyYAML's error in plain words, with what to do."""
    problem, context = error.problem or "", error.context or ""
    mark = error.problem_mark or error.context_mark
    lines = text.splitlines() or [""]
    shown = lines[mark.line].strip() if mark and mark.line < len(lines) else ""
    opened = f" (opened in line {error.context_mark.line + 1})" if error.context_mark and len(lines) > 1 else ""
    if "\\t" in problem or (mark and "\t" in lines[min(mark.line, len(lines) - 1)][: mark.column + 1]):
        return "a tab in the indentation; YAML allows only spaces there"
    if "cannot start any token" in problem:
        return f"`{shown}`: put the text in quotes; it begins with a character that YAML reserves"
    if "flow sequence" in context or "flow mapping" in context or "'<stream end>'" in problem:
        return f"a `{'[' if 'sequence' in context else '{'}` is not closed, or a comma is missing{opened}"
    if "quoted scalar" in context:
        return f"a quote is not closed, or holds an escape that YAML does not know{opened}"
    if "mapping values are not allowed" in problem:
        if shown.count(": ") + shown.endswith(":") > 1:
            return f"`{shown}`: put the text in quotes; it holds a `: `"
        return f"`{shown}` is not indented like the lines around it, or the line before it lacks a colon"
    if "could not find expected ':'" in problem:
        return "the line before it is not `key: value`; add the missing colon"
    if problem.startswith("duplicate key"):
        return f"{problem.replace('duplicate key', 'the key')} is given twice; keep only one"
    if "block end" in problem or "block sequence" in context or "block mapping" in context:
        return f"`{shown}` is not indented like the lines around it; the keys of one section start in the same column"
    if "alias" in problem or "alias" in context or "anchor" in context:
        return f"`{shown}`: `*` and `&` mark references in YAML; put the text in quotes"
    if "tag" in problem or "tag" in context:
        return f"`{shown}`: `!` marks a tag in YAML; put the text in quotes"
    if "single document" in context:
        return "a second document begins (`---`); a config must be a single document"
    if "unhashable" in problem:
        return f"`{shown}`: a key must be a word, without brackets"
    return f"malformed YAML{f' at `{shown}`' if shown else ''} ({problem or context})"

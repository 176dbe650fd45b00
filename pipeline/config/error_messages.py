"""What to say of a value that a setting does not take: the key, what it takes, what was given."""

import difflib
import re
import types
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.config.reading import members

LONGEST_GIVEN = 80  # characters
SAID = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "finite_number": "must be a finite number",
    "missing": "is missing",
}
KINDS = {  # by the first word of pydantic's name of the error
    "string": "must be text",
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
}
OF_FILES = ("sources", "documents", "decontaminate")


def told(error: ValidationError, model: type[BaseModel], names: list[str]) -> str:
    """All that is wrong, in one line. `names` are the dotted names of all settings, for a key out of its section."""
    by_key: dict[tuple[str, str], list[str]] = {}
    for item in error.errors():
        key, message, given = _explained(item, model, names)
        said = by_key.setdefault((key, given), [])
        if message not in said:
            said.append(message)
    lines = []
    for (key, given), said in by_key.items():
        message = " or ".join([said[0], *(each.removeprefix("must be ") for each in said[1:])])
        lines.append(f"{f'{key}: ' if key else ''}{message}{given}")
    return "; ".join(lines)


def _explained(error: Any, model: type[BaseModel], names: list[str]) -> tuple[str, str, str]:
    """`(key, what is wrong, " (given …)")` of one of pydantic's errors."""
    location, annotation, section = _place(error["loc"], model)
    key, value, kind, context = ".".join(location), error["input"], error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return "", _unknown(location, section, names), ""
    if kind == "missing" and location and location[-1].isdecimal():  # of a list with a place for each entry
        whole = next(arm for arm in members(_place(error["loc"][:-1], model)[1]) if get_args(arm))
        return ".".join(location[:-1]), f"takes {len(get_args(whole))} entries ({len(value)} given)", ""
    if kind in ("too_short", "too_long"):
        side, number = ("least", context["min_length"]) if kind == "too_short" else ("most", context["max_length"])
        return key, f"takes at {side} {number} {'entry' if number == 1 else 'entries'} ({len(value)} given)", ""
    if kind == "value_error":
        return key, str(context["error"]), "" if isinstance(value, dict) else _given(value)
    if kind == "literal_error":
        message = _one_of(annotation, value)
    elif kind in ("tuple_type", "list_type"):
        message = f"must be a list, such as {'[{path: a.jsonl}]' if location[-1] in OF_FILES else '[a, b]'}"
    elif kind in ("dict_type", "model_type", "model_attributes_type"):
        of_files = len(location) > 1 and location[-2] in OF_FILES
        message = f"must be a mapping{', such as {path: prompts.jsonl}' if of_files else ' of settings'}"
    else:
        message = SAID.get(kind) or KINDS.get(kind.partition("_")[0]) or error["msg"]
        message = message.format(**context) if kind in SAID else message
    return key, message, _given(value)


def _place(location: tuple[Any, ...], model: type[BaseModel]) -> tuple[list[str], Any, type[BaseModel]]:
    """`(parts of the key, what the field takes, the section that holds it)`; pydantic's names of a union's members are
    no parts."""
    annotation: Any = model
    section, parts = model, []
    for part in location:
        arms = [arm for arm in members(annotation) if arm is not types.NoneType]
        inner = next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel)), None)
        entries = next((get_args(arm) for arm in arms if get_args(arm)), ())
        if inner is not None:
            section = inner
            annotation = inner.model_fields[part].annotation if part in inner.model_fields else Any
        elif isinstance(part, int):
            annotation = entries[part if Ellipsis not in entries and part < len(entries) else 0] if entries else Any
        elif len(arms) > 1:
            continue
        parts.append(str(part))
    return parts, annotation, section


def _unknown(location: list[str], section: type[BaseModel], names: list[str]) -> str:
    nearest = difflib.get_close_matches(location[-1], list(section.model_fields), n=1, cutoff=0.5)
    elsewhere = [name for name in names if name.rpartition(".")[2] == location[-1]]
    meant = elsewhere or [".".join([*location[:-1], nearest[0]]) for _ in nearest]
    told = f"did you mean {' or '.join(meant)}?" if meant else f"the keys here are {', '.join(section.model_fields)}"
    return f"unknown key {'.'.join(location)}; {told}"


def _one_of(annotation: Any, value: Any) -> str:
    choices = [str(choice) for arm in members(annotation) if arm is not types.NoneType for choice in get_args(arm)]
    nearest = difflib.get_close_matches(str(value), choices, n=1)
    return f"must be one of {', '.join(choices)}" + (f"; did you mean {nearest[0]}?" if nearest else "")


def _given(value: Any) -> str:
    """The value as YAML writes it. A long one is cut; a name and password in a URL are left out."""
    words = {None: "nothing", True: "true", False: "false"}
    shown = words[value] if value is None or isinstance(value, bool) else repr(value)
    shown = re.sub(r"//[^/@\s]*@", "//…@", shown)
    return f" (given {shown if len(shown) <= LONGEST_GIVEN else shown[: LONGEST_GIVEN - 1] + '…'})"

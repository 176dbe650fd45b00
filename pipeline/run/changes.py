"""What differs between two fingerprints, how a refusal names it, and which changes `--accept` may take."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import config as config_module
from pipeline.errors import UserError
from pipeline.run.manifest import INPUT


def changes(old: Mapping[str, Any], new: Mapping[str, Any], accepted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The keys in which two fingerprints differ, each with what it `was` and `is`; but for accepted changes."""
    known = [(a["key"], a["is"]) for a in accepted]
    return [
        {"key": key, "was": old.get(key), "is": new.get(key)}
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and (key, new.get(key)) not in known
    ]


def check_accepted(accept: Sequence[str], stages: Sequence[str], made_with: set[str]) -> None:
    """Raises UserError for an accepted key that none of these stages could be made with, naming what was meant.

    `made_with` are the keys of their fingerprints. A key is a setting as refusals name it, or one file of several
    (`prepare.file.prompts.jsonl`).
    """
    if not accept:
        return
    sections = {section.partition(".")[0] for stage in stages for section in config_module.read_by(stage)}
    all_settings = {_setting(name) for name, _ in config_module.fields()}
    known = made_with | {name for name in all_settings if name.partition(".")[0] in sections}
    of_files = {_setting(key) for key in made_with if key != _setting(key)}
    for key in accept:
        if key in known or (_setting(key) in of_files and key != _setting(key)):
            continue
        nearest = [] if key in all_settings else difflib.get_close_matches(key, sorted(known), n=1)
        alike = [name for name in known if name.partition(".")[0] == key.partition(".")[0]]
        listed = f"choose from {', '.join(sorted({_setting(name) for name in alike or known}))}"
        meant = f"did you mean {nearest[0]}?" if nearest else listed
        raise UserError(f"--accept {key}: no such setting of {', '.join(stages)}; {meant}")


def _setting(key: str) -> str:
    """The setting of a fingerprint's key: `prepare.file` of prepare.file.prompts.jsonl."""
    return ".".join(key.split(".")[:2])


def refusal(path: Path, stage: str, changes: list[dict[str, Any]], is_whole: bool) -> str:
    differences = (_differences(c["key"], c["was"], c["is"]) for c in changes)
    listed = "; ".join(f"{key} was {_short(was)}, is {_short(now_is)}" for of in differences for key, was, now_is in of)
    accepts = " ".join(f"--accept {c['key']}" for c in changes)
    ways = [f"give the run a new name (name=...), do {stage} and what follows again (--fresh)"]
    if is_whole:
        ways.append(f"keep its output as it is ({accepts})")
    if all(c["key"].startswith(INPUT) for c in changes):
        inputs = " and ".join(c["key"].removeprefix(INPUT) for c in changes)
        ways[0] = f"do {stage} and what follows again (--fresh)"
        if stage == "train":
            go_on = f"generate.reuse={path} student.model={path}/train/student"
            ways.append(f"go on from its student under a new name (name=... {go_on})")
        return f"{path}/{stage} was made from what {inputs} wrote before that changed. Either {', or '.join(ways)}"
    return f"{path}/{stage} was made with other settings: {listed}. Either {', or '.join(ways)}"


def _differences(key: str, was: Any, now_is: Any) -> list[tuple[str, Any, Any]]:
    """What differs, as deep as it lies: `prepare.sources.0.licence`, not the whole of the sources."""
    if isinstance(was, list) and isinstance(now_is, list) and len(was) == len(now_is):
        was, now_is = dict(enumerate(was)), dict(enumerate(now_is))
    if not (isinstance(was, dict) and isinstance(now_is, dict) and was.keys() == now_is.keys()):
        return [(key, was, now_is)]
    parts = (_differences(f"{key}.{name}", was[name], now_is[name]) for name in was if was[name] != now_is[name])
    return [each for part in parts for each in part]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."

"""Where a run's prompts come from, by its manifests: licences, evaluation sets, personal data. Cards and report say it
alike, and claim nothing that no manifest holds."""

from typing import Any, NamedTuple

import yaml

from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.run import artifacts
from pipeline.run.rundir import RunDir
from pipeline.screening import licences

NOT_RECORDED = "An earlier version of Retort made this run, and did not record it."
SEARCHED = {  # what became of personal data, by what was searched and setting
    "prompts": {
        "redact": "replaced by placeholders before the teacher read them",
        "drop": "prompts with any were left out",
        "off": "not looked for",
    },
    "answers": {
        "mask": "training has no loss on these tokens, and a corpus has placeholders in their place",
        "drop": "answers with any were dropped",
        "off": "not looked for",
    },
}


class Licensed(NamedTuple):
    """A teacher or source: its licence, how many prompts are its, and what the licence says of training on them."""

    who: str
    licence: str
    prompts: int | None
    terms: str


class Sought(NamedTuple):
    """Personal data that was looked for: the kinds by shape, and what else."""

    kinds: list[str]
    beyond: str


class Personal(NamedTuple):
    """Personal data: what was looked for, where it was, and what was found; by what was searched."""

    sought: dict[str, Sought]
    found: dict[str, str]


class HeldAgainst(NamedTuple):
    """Evaluation sets, and how many prompts and answers were left out for repeating an item of theirs."""

    sets: list[str]
    prompts: int
    answers: int


def licensed(run_dir: RunDir) -> tuple[list[Licensed], str] | None:
    """Teacher, sources and what the teacher wrote, and where the teacher's licence was found; None: not recorded."""
    prepared = run_dir.manifest("prepare")
    told = prepared.get("licences")
    if told is None:
        return None
    teacher, is_own = _teacher(run_dir, told), _is_own(run_dir)
    name = lookup.described(prepared["fingerprint"]["teacher.model"])
    rows = [_licensed(f"teacher: {name}", teacher["licence"], None, _terms(teacher["licence"], is_own))]
    rows += [
        _licensed(of["source"], of["licence"], of["prompts"], _terms(of["licence"], False)) for of in told["sources"]
    ]
    rows += [
        _licensed(
            f"written by the teacher ({of['method'].replace('_', ' ')})",
            of["licence"],
            of["prompts"],
            "the teacher's terms, and those of the prompts it was shown",
        )
        for of in told.get("written", [])
    ]
    return rows, teacher["told_by"]


def held_against(run_dir: RunDir) -> HeldAgainst | None:
    """What prompts, and answers once there are decisions about them, were compared with; None: not recorded."""
    prepared = run_dir.manifest("prepare")
    sets = prepared["fingerprint"].get("prepare.decontaminate")
    if sets is None:
        return None
    answers = 0
    if run_dir.is_done("filter"):
        filtered = run_dir.manifest("filter")
        sets = [*sets, *(filtered["fingerprint"].get("filter.decontaminate") or [])]
        answers = next((row["dropped"] for row in filtered["waterfall"] if row["reason"] == "contaminated"), 0)
    names = list(dict.fromkeys(each["path"] or each["dataset"] for each in sets))
    return HeldAgainst(names, prepared["counts"].get("contaminated", 0), answers)


def personal_data(run_dir: RunDir) -> Personal:
    """What was looked for; and of prompts and answers what was found, and what became of it."""
    stages = {"prompts": "prepare", "answers": "filter"}
    found = {what: run_dir.manifest(of).get("screening") for what, of in stages.items() if run_dir.is_done(of)}
    settings = {what: each["privacy"] for what, each in found.items() if each is not None}
    sought = {
        what: Sought(each["kinds"], _beyond_shapes(each)) for what, each in settings.items() if each[what] != "off"
    }
    texts = {what: NOT_RECORDED if each is None else _found(what, each) for what, each in found.items()}
    return Personal(sought, texts)


def licence_policy(run_dir: RunDir) -> str:
    """What was to be done about restrictive licences; empty: not recorded."""
    return _config(run_dir).get("licence_policy", "")


def _beyond_shapes(privacy: dict[str, Any]) -> str:
    presidio = privacy.get("presidio")
    if not presidio or presidio["model"] is None:
        return "Names, street addresses and other things without a shape were not looked for."
    entities = ", ".join(presidio["entities"])
    score = f"{presidio['min_score']:g}"
    return (
        f"By Microsoft Presidio, with the spaCy pipeline {presidio['model']}, from a score of {score} on: {entities}."
    )


def _found(what: str, screening: dict[str, Any]) -> str:
    done, num = screening["privacy"][what], screening[what]["personal"]
    if dropped := screening[what].get("dropped_personal"):
        return f"found in {dropped}, which were left out"
    if not num:
        return SEARCHED[what]["off"] if done == "off" else "found in none"
    kinds = ", ".join(f"{kind} {count}" for kind, count in screening["personal"].items())
    of_all = " (of all that filter looked at, whether it was kept or not)" if what == "answers" else ""
    return f"found in {num} ({kinds}); {SEARCHED[what][done]}{of_all}"


def _licensed(who: str, licence: str | None, prompts: int | None, terms: str) -> Licensed:
    return Licensed(who, licence or "not known", prompts, terms)


def _config(run_dir: RunDir) -> dict[str, Any]:
    """The settings that the run was made with; none where they are gone."""
    path = run_dir.path / artifacts.CONFIG
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged (no settings in YAML); fix it or delete it: manifests have what was run")
    return found


def _teacher(run_dir: RunDir, told: dict[str, Any]) -> dict[str, Any]:
    """The teacher's licence: what the run's config says of it by now, else what was found at the time."""
    later = _config(run_dir).get("teacher", {}).get("licence")
    return {"licence": later, "told_by": "teacher.licence"} if later else told["teacher"]


def _is_own(run_dir: RunDir) -> bool:
    """Whether the student is made of the teacher's weights; of a corpus this is not known yet."""
    if not run_dir.is_done("train"):
        return False
    made = run_dir.fingerprint("train")
    return licences.is_own_family(made.get("student.model"), made.get("student.config"))


def _terms(licence: str | None, is_own: bool) -> str:
    entry = licences.terms_of(licence)
    if entry is None:
        return "not in Retort's table: read it"
    return f"{licences.MEANINGS[licences.verdict_of(entry, is_own)]}. {entry.clause} ({entry.name}: {entry.read})"

"""What dataset and model cards say alike, from a run's manifests: use, licences, personal data, safety labels, and the
questions of a review. Nothing is claimed that no manifest holds."""

from typing import Any

import yaml

from pipeline import licences, models
from pipeline.report.figures import Column, cell, lookup, nats, percent, words
from pipeline.rundir import RunDir

Row = dict[str, Any]
NOT_RECORDED = "An earlier version of Retort made this run, and did not record it.\n"
USES = {
    "corpus": "To train a small language model on a larger one's answers. It is no source of facts: what a model wrote"
    " was not checked against the world.",
    "model": "To answer as its teacher does on prompts like those it was trained on, at less cost. It is no substitute"
    " for its teacher elsewhere, and has seen no further training for safety.",
}
DIFFERENCES = (
    Column("fidelity", "forward_kl_nats", "forward KL", "nats a token", nats),
    Column("fidelity", "top1_agreement_frac", "same first choice", "", percent),
    Column("fidelity", "acceptance_frac", "acceptance", "", percent),
    Column("quality", "repetition_frac", "answers that loop", "", percent),
    Column("quality", "truncated_frac", "answers cut off", "", percent),
)


def intended_use(kind: str) -> str:
    """`kind` is corpus or model."""
    return f"## Intended use\n\n{USES[kind]}\n"


def licences_section(run_dir: RunDir) -> str:
    """Teacher and sources, their licences, and what these say of training on their texts."""
    told = run_dir.manifest("prepare").get("licences")
    if told is None:
        return f"## Sources and licences\n\n{NOT_RECORDED}"
    found, is_own = _teachers(run_dir, told), _is_own(run_dir)
    rows = [(f"teacher: {models.described(_teacher(run_dir))}", found["licence"], "", is_own)]
    rows += [(source["source"], source["licence"], source["prompts"], False) for source in told["sources"]]
    lines = [
        f"| {who} | {licence or 'not known'} | {num} | {_terms(licence, own)} |" for who, licence, num, own in rows
    ]
    lines += [
        f"| written by the teacher ({words(of['method'])}) | {of['licence'] or 'not known'} | {of['prompts']} |"
        " the teacher's terms, and those of the prompts it was shown |"
        for of in told.get("written", [])
    ]
    return f"""## Sources and licences

| source | licence | prompts | what it says of training on its texts |
|---|---|---|---|
{chr(10).join(lines)}

The teacher's licence was told by {found["told_by"]}. The last column is a reading by people who are
no lawyers: see the licences themselves.
"""


def decontamination_section(run_dir: RunDir) -> str:
    """Which evaluation sets prompts and answers were held against, and what was left out for them."""
    prepared, filtered = run_dir.manifest("prepare"), run_dir.manifest("filter")
    sets = prepared["fingerprint"].get("prepare.decontaminate")
    if sets is None:
        return f"## Evaluation items\n\n{NOT_RECORDED}"
    sets = [*sets, *(filtered["fingerprint"].get("filter.decontaminate") or [])]
    names = ", ".join(dict.fromkeys(each["path"] or each["dataset"] for each in sets)) or "none"
    prompts = prepared["counts"].get("contaminated", 0)
    answers = next((row["dropped"] for row in filtered["waterfall"] if row["reason"] == "contaminated"), 0)
    return f"""## Evaluation items

Held against: {names}. Left out for repeating an item (a 13-gram of words, or half of its 8-grams): {prompts} prompts,
{answers} answers.
"""


def personal_section(run_dir: RunDir, handed_on: str = "") -> str:
    """What was looked for, what was found, and what became of it."""
    prompts, answers = (run_dir.manifest(stage).get("screening") for stage in ("prepare", "filter"))
    lines = []
    for what, screening, how in (("prompts", prompts, PROMPTS), ("answers", answers, ANSWERS)):
        if screening is None:
            lines.append(f"- {what.capitalize()}: {NOT_RECORDED.strip()}")
            continue
        done = screening["privacy"][what]
        num, kinds = screening[what]["personal"], ", ".join(f"{k} {n}" for k, n in screening["personal"].items())
        found = f"found in {num} ({kinds}); {how[done]}" if num else how["off"] if done == "off" else "found in none"
        found += " (of all that filter looked at, whether it was kept or not)" if num and what == "answers" else ""
        if dropped := screening[what].get("dropped_personal"):
            found = f"found in {dropped}, which were left out"
        lines.append(f"- {what.capitalize()}: {found}")
    looked_for = answers or prompts or {"privacy": {"kinds": []}}
    sought = ", ".join(looked_for["privacy"]["kinds"])
    return f"""## Personal data

Looked for, by shape and check digit: {sought or "nothing"}. {_presidio(looked_for["privacy"])}
A person may be known from what is left.

{chr(10).join(lines)}
{f"- {handed_on}{chr(10)}" if handed_on else ""}"""


def _presidio(settings: Row) -> str:
    found_by = settings.get("presidio")
    if not found_by or found_by["model"] is None:
        return "Names, street addresses and other things without a shape\nwere not looked for."
    return (
        f"By Microsoft Presidio, with the spaCy pipeline\n{found_by['model']}, from a score of"
        f" {found_by['min_score']:g} on: {', '.join(found_by['entities'])}."
    )


PROMPTS = {
    "redact": "replaced by placeholders before the teacher read them",
    "drop": "prompts with any were left out",
    "off": "not looked for",
}
ANSWERS = {
    "mask": "training has no loss on these tokens, and a corpus has placeholders in their place",
    "drop": "answers with any were dropped",
    "off": "not looked for",
}


def safety_section(run_dir: RunDir) -> str:
    """Which labels prompts and answers were given, and by what."""
    lines = []
    for stage, what in (("prepare", "prompts"), ("filter", "answers")):
        screening = run_dir.manifest(stage).get("screening")
        if screening is None:
            lines.append(f"- {what.capitalize()}: {NOT_RECORDED.strip()}")
            continue
        by = _labelled_by(screening["safety"])
        labels = ", ".join(f"{label} {num}" for label, num in sorted(screening["labels"].items())) or "none"
        highest = screening["safety"][f"max_{what[:-1]}_score"]
        drops = "labels alone drop nothing" if highest is None else f"a score above {highest:g} drops"
        lines.append(f"- {what.capitalize()}, by {by}: {labels}; {drops}")
    return f"""## Safety labels

{chr(10).join(lines)}

A word list sees phrases and no meaning; that no label was given says little.
"""


def differences(scores: Row) -> str:
    """The student's measured differences from its teacher, those of the other students beside them."""
    arms, names = (
        scores["arms"],
        [name for name in ("student", "sft_only", "untrained", "teacher") if name in scores["arms"]],
    )
    lines = []
    for column in DIFFERENCES:
        cells = [cell(lookup(arms, arm, column), column.write) for arm in names]
        if any(each.interval for each in cells):
            texts = [f"{each.value} ({each.interval})" if each.interval else each.value for each in cells]
            lines.append(f"| {column.label}{f', {column.unit}' if column.unit else ''} | {' | '.join(texts)} |")
    head = f"| | {' | '.join(name.replace('_', ' ') for name in names)} |\n|---{'|---' * len(names)}|"
    return f"{head}\n{chr(10).join(lines)}\n\nIn brackets: 95 % intervals, by bootstrap over prompts.\n"


def questions(run_dir: RunDir, kind: str) -> str:
    """What NIST AI RMF 1.0 and annex A of ISO/IEC 42001:2023 ask and a card can answer from facts, and the answers.

    `kind` is corpus or model.
    """
    counts, is_model = run_dir.manifest("filter")["counts"], kind == "model"
    each = "" if is_model else "; each row names its source, licence, teacher and run"
    kept = f"{counts['kept']} of {counts['responses']} answers were kept, each drop with its reason: filter/ in the run"
    limits = "What was measured; Before you use it" if is_model else "Intended use; Personal data"
    proofs = "the run's manifests hold the hashes of weights, template and files; `retort verify` proves them"
    rows = [
        ("What is it for, and what not?", "MAP 1.1", "A.9.4", "Intended use"),
        ("Where do data and models come from?", "MAP 4.1", "A.7.3, A.7.5", f"Sources and licences{each}"),
        ("May they be used so?", "GOVERN 6.1", "A.7.3", "Sources and licences, as far as a table can tell"),
        ("How was the data prepared?", "MAP 2.3", "A.7.4, A.7.6", kept),
        ("What of people's data?", "MEASURE 2.10", "A.7.2", "Personal data"),
        ("What of harm and attacks?", "MEASURE 2.6, 2.7", "A.6.2.4", "Safety labels"),
        *([("How well does it do?", "MEASURE 2.3", "A.6.2.4", "What was measured")] if is_model else []),
        ("What is known not to work?", "MAP 2.2, MEASURE 2.5", "A.8.2", limits),
        ("Can it be made again, and checked?", "MEASURE 2.8", "A.6.2.7", proofs),
        ("Is it fair? Whom does it affect?", "MAP 5.1, MEASURE 2.11", "A.5", "not in a run's files: for you to write"),
        ("Who answers for it, and what when it fails?", "GOVERN 2.1, MANAGE 4.1", "A.3, A.8.3", "for you to write"),
    ]
    lines = "\n".join(f"| {asked} | {nist} | {iso} | {answer} |" for asked, nist, iso, answer in rows)
    return f"""## What a review asks

| question | NIST AI RMF | ISO/IEC 42001 | answer |
|---|---|---|---|
{lines}
"""


def _teacher(run_dir: RunDir) -> str:
    return run_dir.manifest("generate")["fingerprint"]["teacher.model"]


def _teachers(run_dir: RunDir, told: Row) -> Row:
    """The teacher's licence: what the run's config says of it by now, else what was found at the time."""
    config = yaml.safe_load((run_dir.path / "config.yaml").read_text(encoding="utf-8"))
    later = config.get("teacher", {}).get("licence")
    return {"licence": later, "told_by": "teacher.licence"} if later else told["teacher"]


def _is_own(run_dir: RunDir) -> bool:
    """Whether the student is made of the teacher's weights; of a corpus it can't be told yet."""
    if not run_dir.is_done("train"):
        return False
    made = run_dir.manifest("train")["fingerprint"]
    return licences.is_own_family(made.get("student.model"), made.get("student.config"))


def _terms(licence: str | None, is_own: bool) -> str:
    entry = licences.terms_of(licence)
    if entry is None:
        return "not in Retort's table: read it"
    return f"{licences.MEANINGS[licences.verdict_of(entry, is_own)]}. {entry.clause} ({entry.name}: {entry.read})"


def _labelled_by(settings: Row) -> str:
    by = [
        f"word list ({settings['words']})" if settings["words"] else "",
        f"classifier {settings['classifier']}" if settings["classifier"] else "",
        f"guard {settings['guard_model']}" if settings["guard_model"] else "",
    ]
    return ", ".join(filter(None, by)) or "nothing"

"""What dataset and model cards say alike, from a run's manifests: use, licences, personal data, safety labels, and the
questions of a review. Nothing is claimed that no manifest holds."""

from typing import Any

from pipeline.console import counted
from pipeline.report.figures import Column, cell, lookup, nats, percent
from pipeline.run import metrics
from pipeline.run.rundir import RunDir
from pipeline.screening import provenance

Row = dict[str, Any]
NOT_RECORDED = f"{provenance.NOT_RECORDED}\n"
USES = {
    "corpus": "To train a small language model on a larger one's answers. Not a source of facts: what a model wrote"
    " was not checked against the world.",
    "model": "To answer as its teacher does on prompts like those it was trained on, at less cost. Not a substitute"
    " for its teacher elsewhere, and has seen no further training for safety.",
}
DIFFERENCES = (
    Column("fidelity", metrics.FORWARD_KL_NATS, "forward KL", "nats a token", nats),
    Column("fidelity", metrics.TOP1_AGREEMENT_FRAC, "same first choice", "", percent),
    Column("fidelity", metrics.ACCEPTANCE_FRAC, "acceptance", "", percent),
    Column("quality", metrics.REPETITION_FRAC, "answers that loop", "", percent),
    Column("quality", metrics.TRUNCATED_FRAC, "answers cut off", "", percent),
)


def intended_use(kind: str) -> str:
    """`kind` is corpus or model."""
    return f"## Intended use\n\n{USES[kind]}\n"


def licences_section(run_dir: RunDir) -> str:
    """Teacher and sources, their licences, and what these say of training on their texts."""
    told = provenance.licensed(run_dir)
    if told is None:
        return f"## Sources and licences\n\n{NOT_RECORDED}"
    rows, told_by = told
    lines = [
        f"| {row.who} | {row.licence} | {'' if row.prompts is None else row.prompts} | {row.terms} |" for row in rows
    ]
    return f"""## Sources and licences

| source | licence | prompts | what it says of training on its texts |
|---|---|---|---|
{chr(10).join(lines)}

The teacher's licence comes from {told_by}. The last column is a reading by people who are
no lawyers: see the licences themselves.
"""


def decontamination_section(run_dir: RunDir) -> str:
    """Which evaluation sets prompts and answers were compared with, and what was left out for them."""
    held = provenance.held_against(run_dir)
    if held is None:
        return f"## Evaluation items\n\n{NOT_RECORDED}"
    names = ", ".join(held.sets) or "none"
    return f"""## Evaluation items

Held against: {names}. Left out for repeating an item (a 13-gram of words, or half of its 8-grams):
{counted(held.prompts, "prompt")}, {counted(held.answers, "answer")}.
"""


def personal_section(run_dir: RunDir, handed_on: str = "") -> str:
    """What was looked for, what was found, and what became of it."""
    personal = provenance.personal_data(run_dir)
    lines = [f"- {what.capitalize()}: {text}" for what, text in personal.found.items()]
    return f"""## Personal data

{_sought(personal.sought)}
A person may be known from what is left.

{chr(10).join(lines)}
{f"- {handed_on}{chr(10)}" if handed_on else ""}"""


def _sought(sought: dict[str, provenance.Sought]) -> str:
    """What was looked for; once, where it was the same in prompts and answers."""
    is_same = len(sought) == 2 and len(set(map(str, sought.values()))) == 1
    told = [("", next(iter(sought.values())))] if is_same else [(f" in {what}", of) for what, of in sought.items()]
    lines = [
        f"Looked for{where}, by shape and check digit: {', '.join(of.kinds) or 'nothing'}. {of.beyond}"
        for where, of in told
    ]
    return "\n".join(lines) or "Nothing was looked for, as far as is recorded."


def template_section(run_dir: RunDir) -> str:
    """What has to be done to a conversation for the chat template; empty if it takes every one."""
    shape = run_dir.manifest("prepare").get("chat_template") or {}
    lines = []
    if shape.get("takes_system") is False:
        lines.append(
            "- The chat template takes no system message. The student was trained and measured with its text before the"
            " first user message, and a blank line between."
        )
    if shape.get("takes_any_order") is False:
        lines.append("- The chat template wants user and assistant to take turns: join messages of one role.")
    return f"## How to write a conversation\n\n{chr(10).join(lines)}\n\n" if lines else ""


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
        [name for name in ("student", "sft_only", "untrained", "other", "teacher") if name in scores["arms"]],
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


def _labelled_by(settings: Row) -> str:
    by = [
        f"word list ({settings['words']})" if settings["words"] else "",
        f"classifier {settings['classifier']}" if settings["classifier"] else "",
        f"guard {settings['guard_model']}" if settings["guard_model"] else "",
    ]
    return ", ".join(filter(None, by)) or "nothing"

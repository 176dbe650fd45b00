"""The judge: a chat model says which answers are better, in both orders, and how far it can be believed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.console import counted
from pipeline.eval_sets import chat_set
from pipeline.evaluate.judge import checks
from pipeline.evaluate.judge.turns import Rows, pairs, replies
from pipeline.evaluate.judge.win_rates import Clustered, Figures, Outcome, by_category, compared
from pipeline.judge import ask, cost_of
from pipeline.judge.ledger import Ledger
from pipeline.judge.questions import Asker, JudgedAnswer, JudgeRequest, Pair
from pipeline.run import artifacts, metrics
from pipeline.statistics import exact

GRADED = ("teacher", "student", "sft_only")
RIVALS = {"teacher": "the teacher's", "sft_only": "that of the student trained by cross-entropy alone"}
VERDICTS = artifacts.VERDICTS


@dataclass
class Judged:
    """What the judge found; all empty where there is none."""

    arms: dict[str, dict[str, Any]] = field(default_factory=dict)  # section `judge` of each arm
    comparisons: Figures = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class _Plan:
    """All that the judge is asked: both orders of every pair (none where both are the same), and each answer alone."""

    compared: dict[str, list[tuple[Pair, list[JudgeRequest]]]]
    graded: dict[str, list[tuple[JudgedAnswer, JudgeRequest]]]

    def questions(self) -> list[JudgeRequest]:
        asked = [question for rows in self.compared.values() for _, both in rows for question in both]
        return asked + [question for rows in self.graded.values() for _, question in rows]


def run(
    settings: config.Evaluate, rows: Rows, folder: Path, teacher: str, items: Sequence[chat_set.ChatItem] = ()
) -> Judged:
    """Judge the arms' answers: the student's against the teacher's and the SFT-only student's, and each by itself.

    `rows` are as records.SAMPLES has them, of any set, and may have `system` (else that of their item in `items`) and
    `reference` (a correct answer). The verdicts are kept in folder/verdicts.jsonl; what stands there is not asked
    again. `teacher` is the teacher's name.

    Raises UserError: too dear, a server that does not answer or refuses, a malformed template, a full disk.
    """
    judge = settings.judge
    if judge.url is None or not rows:
        return Judged()
    systems = {item.id: item.system for item in items}
    given: Any = [{"system": systems.get(row["item_id"]), **row} for row in rows]
    plan = _plan(settings, given)
    ledger = Ledger(folder / VERDICTS)
    ask(judge, plan.questions(), ledger, "evaluate.chat_items")
    return _judged(settings, plan, ledger, teacher)


def _plan(settings: config.Evaluate, rows: Rows) -> _Plan:
    asker, by_arm = Asker(settings.judge), {arm: replies(rows, arm) for arm in GRADED}
    sound = list(by_arm["teacher"].values())
    every = [pair for rival in RIVALS for pair in pairs(f"over_{rival}", by_arm["student"], by_arm[rival])]
    every += checks.planted(sound, settings.judge.check_items, settings.seed)
    plan = _Plan({}, {})
    for pair in every:
        both = [asker.pairwise(pair, order) for order in (0, 1)]
        if both[0].key == both[1].key and pair.name != checks.IDENTICAL:
            both = []  # a tie, without a judge
        plan.compared.setdefault(pair.name, []).append((pair, both))
    for arm, given in by_arm.items():
        if given:
            plan.graded[arm] = [(reply, asker.single(arm, reply)) for reply in given.values()]
    return plan


def _judged(settings: config.Evaluate, plan: _Plan, ledger: Ledger, teacher: str) -> Judged:
    draws = Clustered(settings.bootstrap, settings.seed)
    outcomes = {name: [_outcome(pair, both, ledger) for pair, both in rows] for name, rows in plan.compared.items()}
    found = Judged(files=[ledger.path])
    for arm, graded in plan.graded.items():
        figures = _grades(arm, graded, ledger, draws)
        if figures:
            found.arms[arm] = figures
    student: dict[str, Any] = found.arms.setdefault("student", {})
    for rival in RIVALS:
        if of_rival := outcomes.get(f"over_{rival}"):
            student[f"over_{rival}"] = compared(of_rival, draws)
            student[f"over_{rival}_by_category"] = by_category(of_rival, draws)
            found.comparisons |= _comparisons(rival, student[f"over_{rival}"])
    if difference := _grade_difference(plan, ledger, draws):
        found.comparisons["judge_grade_less_teachers"] = difference
    kinds = (checks.IDENTICAL, *checks.MADE_WORSE)
    student["checks"] = checks.figures({name: outcomes[name] for name in kinds if name in outcomes})
    tokens = ledger.tokens_on(plan.questions())
    student["cost"] = {
        "verdicts": exact(len({question.key for question in plan.questions()})),
        "prompt_tokens": exact(tokens.prompt),
        "completion_tokens": exact(tokens.completion),
        "cost": exact(cost_of(settings.judge, tokens)),
    }
    found.sentences = _sentences(settings.judge, student, teacher)
    return found


def _outcome(pair: Pair, both: list[JudgeRequest], ledger: Ledger) -> Outcome:
    longer_by = len(pair.one.answer) - len(pair.other.answer)
    choices = (ledger.choice(both[0]), ledger.choice(both[1])) if both else ("tie", "tie")
    return Outcome(pair.one.item_id, pair.one.category, longer_by, choices)


def _grades(arm: str, graded: list[tuple[JudgedAnswer, JudgeRequest]], ledger: Ledger, draws: Clustered) -> Figures:
    """Mean grade of an arm's answers, 1-10, and the share of grades that could not be read."""
    given = [(reply.item_id, ledger.choice(question)) for reply, question in graded]
    found = {
        "grade": draws.mean((item_id, float(grade)) for item_id, grade in given if grade is not None),
        metrics.INVALID_FRAC: draws.mean((item_id, float(grade is None)) for item_id, grade in given),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _grade_difference(plan: _Plan, ledger: Ledger, draws: Clustered) -> Any:
    """The student's grade less the teacher's, turn by turn; None where they have no graded turn in common."""
    grades = {
        arm: {(reply.item_id, reply.turn): ledger.choice(question) for reply, question in plan.graded.get(arm, [])}
        for arm in ("student", "teacher")
    }
    both = [(place, own, grades["teacher"].get(place)) for place, own in grades["student"].items()]
    return draws.mean(
        (place[0], float(own) - float(others)) for place, own, others in both if own is not None and others is not None
    )


def _comparisons(rival: str, figures: Figures) -> Figures:
    names = (metrics.WIN_RATE, metrics.LENGTH_CONTROLLED_WIN_RATE)
    return {f"judge_{name}_over_{rival}": figures[name] for name in names if name in figures}


def _sentences(judge: config.Judge, student: dict[str, Any], teacher: str) -> list[str]:
    """Whether the judge can be believed first, then what it found."""
    found = []
    doubted = checks.doubts(student["checks"], student.get("over_teacher", {}))
    if doubted:
        found.append(f"Do not believe the judge {judge.model}: {'; '.join(doubted)}.")
    else:
        shares = [checks.percent(student["checks"][f"sound_over_{name}_frac"]) for name in checks.MADE_WORSE]
        found.append(
            f"The judge {judge.model} passed its self-checks: beside an answer made worse on purpose it prefers the"
            f" sound one in {' and '.join(shares)} of pairs."
        )
    if (family := _family(judge.model or "")) and family == _family(teacher):
        found.append(f"The judge is of the teacher's family ({family}), and models tend to prefer their own kind.")
    for rival, whose in RIVALS.items():
        figures = student.get(f"over_{rival}", {})
        if metrics.WIN_RATE in figures:
            found.append(_win_sentence(judge, whose, figures))
    return found


def _win_sentence(judge: config.Judge, whose: str, figures: Figures) -> str:
    raw, even = figures[metrics.WIN_RATE], figures[metrics.LENGTH_CONTROLLED_WIN_RATE]
    told = (
        f"Judged by {judge.model} in both orders, the student's answer is preferred to {whose} in {checks.percent(raw)}"
        f" of cases, ties counted half ({checks.percent(even)} at equal length; {counted(raw['num'], 'item')})"
    )
    ends = [end for figure in (raw, even) for end in (figure["low"], figure["high"])]
    if all(end is not None and end > 0.5 for end in ends):
        return f"{told}: it is preferred."
    if all(end is not None and end < 0.5 for end in ends):
        return f"{told}: the other is preferred."
    return f"{told}: no preference was shown."


def _family(name: str) -> str:
    """The letters that a model's name begins with: qwen of Qwen/Qwen3-32B."""
    match = re.match(r"[a-z]{3,}", name.rstrip("/").rpartition("/")[2].lower())
    return match[0] if match else ""

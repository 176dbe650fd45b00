"""The verdict in claims, made of the figures alone: what was shown, with intervals, and what was not."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pipeline.console import counted
from pipeline.report.summary import equals_apart, num_gpus
from pipeline.run import artifacts, metrics
from pipeline.run.left_out import MIN_HELD_OUT
from pipeline.statistics import SIGNIFICANCE, Figure

OTHERS = {
    "untrained": "the untrained student",
    "sft_only": "a student trained on the same tokens by cross-entropy alone",
}

TASK_OTHERS = {
    "teacher": "the teacher",
    "sft_only": "the SFT-only student",
    "untrained": "the untrained student",
    "other": "the other model",
}

FIDELITY_ROWS, TASK_ROWS, SPEED_ROWS = artifacts.FIDELITY, artifacts.TASKS, artifacts.SPEED
CHAT_ROWS, RISK_ROWS = artifacts.SAMPLES, artifacts.RISKS

MIN_PASSED = 10  # tasks that the teacher passes, before a share of them is worth telling

OTHER_MEASURES = {  # (name, whether less of it is better)
    metrics.REVERSE_KL_NATS: ("reverse KL", True),
    metrics.TOP1_AGREEMENT_FRAC: ("same first choice", False),
    metrics.ACCEPTANCE_FRAC: ("acceptance", False),
    metrics.NLL_NATS: ("NLL of the teacher's answers", True),
}


class Claim(NamedTuple):
    """A sentence, and the file of evaluate's folder whose rows it was counted from."""

    text: str
    rows: str


def claims(
    arms: dict[str, Any], comparisons: Mapping[str, Figure | None], task_comparisons: Mapping[str, Figure | None]
) -> list[Claim]:
    """Fidelity first, then what training and KD bought, then tasks, then speed and size, then health."""
    return [
        *resting_on(FIDELITY_ROWS, _fidelity(arms, comparisons)),
        *resting_on(TASK_ROWS, _tasks(arms, task_comparisons)),
        *resting_on(SPEED_ROWS, [*_speed(arms, comparisons), *_noise(arms)]),
        *resting_on(CHAT_ROWS, _health(arms)),
    ]


def resting_on(rows: str, sentences: Iterable[str]) -> list[Claim]:
    return [Claim(sentence, rows) for sentence in sentences]


def _fidelity(arms: dict[str, Any], comparisons: Mapping[str, Figure | None]) -> list[str]:
    own = arms["student"]["fidelity"]
    num = own[metrics.FORWARD_KL_NATS]["num"]
    told = [
        f"On {counted(num, 'held-out prompt')} the student's forward KL to the teacher is"
        f" {_interval(own[metrics.FORWARD_KL_NATS])} nats a token.",
        f"The student and the teacher have the same first choice for {_percent(own[metrics.TOP1_AGREEMENT_FRAC])}"
        " of tokens.",
    ]
    if num < MIN_HELD_OUT:
        told.append(
            f"That is too few held-out prompts to rely on: intervals need about {MIN_HELD_OUT}."
            " Raise prepare.held_out_frac, or give more prompts."
        )
    for other, name in OTHERS.items():
        if f"kl_over_{other}" in comparisons:
            told.append(_kl_sentence(comparisons[f"kl_over_{other}"], name))
    told += _other_measures(comparisons, "")
    if "chat_kl_over_sft_only" in comparisons:
        chat = _kl_sentence(comparisons["chat_kl_over_sft_only"], OTHERS["sft_only"])
        told.append(f"On the chat set {chat[0].lower()}{chat[1:]}")
        told += _other_measures(comparisons, "chat_")
    return told + _exposure(arms["student"].get("own_over_chat", {}))


def _tasks(arms: dict[str, Any], comparisons: Mapping[str, Figure | None]) -> list[str]:
    """Quality by verifiable tasks: how much of the teacher's the student has, and what training it bought."""
    if metrics.TASK_PASS_FRAC not in arms["student"]["quality"]:
        return []
    student, teacher = (arms[arm]["quality"][metrics.TASK_PASS_FRAC] for arm in ("student", "teacher"))
    retained = comparisons.get(metrics.RETAINED_QUALITY)
    told = [
        f"Of {counted(student['num'], 'checked task')} the student passes {_passed(student)}, the teacher"
        f" {_passed(teacher)}.",
        *_retained(retained, teacher),
    ]
    if metrics.GAP_CLOSED in comparisons:
        closed = comparisons[metrics.GAP_CLOSED]
        told.append(
            f"Training closed {_percent(closed)} of the gap in tasks between the untrained student and the teacher."
            if closed
            else "Teacher and untrained student were not shown to differ in tasks, so there is no gap to close."
        )
    compared = [_task_difference(comparisons, other, name) for other, name in TASK_OTHERS.items()]
    return [*told, *(sentence for sentence in compared if sentence)]


def _task_difference(comparisons: Mapping[str, Figure | None], other: str, name: str) -> str:
    """The paired difference from one arm; by the exact test, adjusted for all arms that were compared."""
    difference, p = (comparisons.get(f"task_{what}_{other}") for what in ("difference_from", "p"))
    if difference is None or p is None:
        return ""
    tested = f"{_points(difference)}; exact McNemar test, p = {_p_text(p['value'])} after Holm's correction"
    if p["value"] < SIGNIFICANCE:
        better = "more" if difference["value"] > 0 else "fewer"
        return f"The student passes {better} tasks than {name} ({tested})."
    detectable = comparisons.get(f"task_detectable_difference_{other}")
    could = "" if detectable is None else f"; {100 * detectable['value']:.0f} points would show four times in five"
    return f"No difference in tasks from {name} was shown ({tested}{could})."


def _speed(arms: dict[str, Any], comparisons: Mapping[str, Figure | None]) -> list[str]:
    speed, size = comparisons[metrics.SPEED_OVER_TEACHER], comparisons[metrics.PARAMETERS_OVER_TEACHER]
    if not speed or not size:
        return []
    student, teacher = (num_gpus(arms[arm]) for arm in ("student", "teacher"))
    each, where = "", ""
    if student and teacher:
        each, where = " per GPU", f"; it ran on {_counted(student)}, the teacher on {_counted(teacher)}"
    told = f"Served by vLLM, the student writes {speed['value']:.2f}× as many tokens a second{each} as the teacher"
    if speed["low"] is not None and speed["high"] is not None:
        rounds = counted(speed["num"], "round")
        told += f" (timed in turn, {rounds} from {speed['low']:.2f} to {speed['high']:.2f}{where})"
    else:
        told += f" (timed one after the other{where})"
    return [f"{told}.", f"It has {size['value']:.2f}× the teacher's parameters."]


def _counted(num: int) -> str:
    return f"{num} GPU{'s' * (num > 1)}"


def _noise(arms: dict[str, Any]) -> list[str]:
    """Arms of one size have one speed: if they were timed far apart, the machine was not quiet enough."""
    apart = equals_apart(arms)
    if apart is None:
        return []
    return [
        f"Students of the same size were timed {apart:.2f}× apart, so other work slowed this machine."
        " Smaller differences of speed mean nothing, nor does what follows from them."
    ]


def _exposure(own_over_chat: dict[str, Figure]) -> list[str]:
    """What becomes of the student's KL in text of its own."""
    over = own_over_chat.get(metrics.FORWARD_KL_NATS)
    if over is None:
        return []
    if over["low"] is None or over["high"] is None or over["low"] <= 1 <= over["high"]:
        told = "The student's KL was not shown to differ between its own chat answers and the teacher's"
        return [f"{told} ({_interval(over)}×)."]
    how = "it strays in its own text" if over["value"] > 1 else "its own text is easier for it"
    return [f"The student's KL on its own chat answers is {_interval(over)}× that on the teacher's: {how}."]


def _kl_sentence(over: Figure | None, name: str) -> str:
    if over is None:
        return f"The KL of {name} is 0, so the student's is no multiple of it."
    low, high = over["low"], over["high"]
    if low is None or high is None or low <= 1 <= high:
        return f"The student's KL was not shown to differ from that of {name} ({_interval(over)}×)."
    better = "closer to" if over["value"] < 1 else "farther from"
    return f"The student's KL is {_interval(over)}× that of {name}: it is {better} the teacher."


def _other_measures(comparisons: Mapping[str, Figure | None], prefix: str) -> list[str]:
    """Where the SFT-only student is behind, level or ahead by other measures; NLL is the one it was trained on."""
    found: dict[str, list[str]] = {"better": [], "no difference shown": [], "worse": []}
    for measure, (name, less_is_better) in OTHER_MEASURES.items():
        over = comparisons.get(f"{prefix}{measure}_over_sft_only")
        if over is None:
            continue
        low, high = over["low"], over["high"]
        if low is None or high is None or low <= 1 <= high:
            found["no difference shown"].append(f"{name} ({_interval(over)}×)")
        else:
            is_better = (over["value"] < 1) == less_is_better
            found["better" if is_better else "worse"].append(f"{name} ({_interval(over)}×)")
    where = "On the chat set" if prefix else "On the held-out prompts"
    heads = {"better": "is better", "no difference shown": "shows no difference", "worse": "is worse"}
    return [
        f"{where} the student {heads[what]} than the SFT-only student by {', '.join(names)}.".replace(
            "difference than", "difference from"
        )
        for what, names in found.items()
        if names
    ]


def _health(arms: dict[str, Any]) -> list[str]:
    student, teacher = arms["student"]["quality"], arms["teacher"]["quality"]
    if not student:
        return []
    loops, cut = (
        f"{student[key]['value']:.0%} (teacher: {teacher[key]['value']:.0%})"
        for key in (metrics.REPETITION_FRAC, metrics.TRUNCATED_FRAC)
    )
    return [
        f"Of the student's chat answers {loops} repeat themselves; read them before you believe any figure.",
        f"Of the student's chat answers {cut} are cut off at the limit.",
    ]


def _interval(figure: Figure) -> str:
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:.2f}"
    return f"{figure['value']:.2f} ({figure['low']:.2f}–{figure['high']:.2f})"


def _passed(figure: Figure) -> str:
    """`4 (10 %)`"""
    return f"{round(figure['value'] * figure['num'])} ({figure['value']:.0%})"


def _retained(retained: Figure | None, teacher: Figure) -> list[str]:
    """The student's share of the teacher's passes, if the teacher has enough of them for a share to mean anything."""
    if retained is None:
        return ["The teacher was not shown to pass any task, so there is no share of its quality to retain."]
    if round(teacher["value"] * teacher["num"]) < MIN_PASSED:
        return []
    return [f"By these tasks the student retains {_percent(retained)} of the teacher's quality."]


def _percent(figure: Figure) -> str:
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:.0%}"
    return f"{figure['value']:.0%} ({figure['low']:.0%}–{figure['high']:.0%})"


def _points(figure: Figure) -> str:
    """A difference of shares, in percentage points."""
    value = f"{100 * figure['value']:+.0f} points"
    if figure["low"] is None or figure["high"] is None:
        return value
    return f"{value}, {100 * figure['low']:+.0f} to {100 * figure['high']:+.0f}"


def _p_text(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else f"{p:.0e}"

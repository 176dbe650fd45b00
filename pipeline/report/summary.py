"""The verdict of a run in at most five sentences, each with one claim and one figure, made of scores.json alone.

What they leave out (intervals, other measures, tests) is in the claims of scores.json.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.run import artifacts, metrics
from pipeline.run.left_out import MIN_HELD_OUT
from pipeline.statistics import SIGNIFICANCE

MAX_EQUALS_APART = 1.1  # times; on a quiet machine arms of one size are within a tenth
MANY_LOOPS_FRAC = 0.1
Row = Mapping[str, Any]


class Sentence(NamedTuple):
    """A sentence, and the file of evaluate's folder whose rows it was counted from."""

    text: str
    rows: str


def summary(arms: Row, verdict: Row) -> list[Sentence]:
    """Closeness, what training gained, tasks, speed, and a caution; what was not measured is left out."""
    found = [_closeness(arms), _gain(verdict), _tasks(arms, verdict), _speed(arms, verdict), _caution(arms)]
    return [sentence for sentence in found if sentence]


def equals_apart(arms: Row) -> float | None:
    """How many times apart arms of the student's size were timed, if that is more than a quiet machine explains."""
    size = arms.get("student", {}).get("cost", {}).get(metrics.NUM_PARAMETERS, {}).get("value")
    alike = [
        arm
        for arm in arms.values()
        if size and arm.get("cost", {}).get(metrics.NUM_PARAMETERS, {}).get("value") == size
    ]
    rates = [each for arm in alike if (each := rate_per_gpu(arm))]
    return max(rates) / min(rates) if rates and max(rates) > MAX_EQUALS_APART * min(rates) else None


def rate_per_gpu(arm: Row) -> float | None:
    """Output tokens a second of an arm on each of its GPUs, or on the whole machine if it has none."""
    found = arm.get("speed", {}).get(metrics.OUTPUT_TOKENS_PER_S)
    return found["value"] / (num_gpus(arm) or 1) if found else None


def num_gpus(arm: Row) -> int:
    """GPUs that an arm was served on; 0 on a CPU."""
    return int((arm.get("cost", {}).get("num_gpus") or {"value": 0})["value"])


def _closeness(arms: Row) -> Sentence | None:
    found = arms.get("student", {}).get("fidelity", {}).get(metrics.TOP1_AGREEMENT_FRAC)
    if not found:
        return None
    told = f"The student's most likely next token is the teacher's {found['value']:.0%} of the time."
    return Sentence(told, artifacts.FIDELITY)


def _gain(verdict: Row) -> Sentence | None:
    over_sft, over_untrained = (verdict.get(f"kl_over_{other}") for other in ("sft_only", "untrained"))
    over = over_sft or over_untrained
    if not over:
        return None
    how = "Training on the teacher's probabilities" if over_sft else "Training"
    than = "than plain fine-tuning on the same answers" if over_sft else "than it was before"
    if not _is_shown(over):
        told = f"{how} was not shown to bring it closer to the teacher {than} (KL ratio {over['value']:.2f})."
    elif over["value"] < 1:
        told = f"{how} brought it {1 - over['value']:.0%} closer to the teacher {than}, by KL."
    else:
        told = f"{how} left it {over['value'] - 1:.0%} farther from the teacher {than}, by KL."
    return Sentence(told, artifacts.FIDELITY)


def _is_shown(over: Row) -> bool:
    """Whether a ratio's interval leaves 1 out."""
    low, high = over["low"], over["high"]
    return low is not None and high is not None and not low <= 1 <= high


def _tasks(arms: Row, verdict: Row) -> Sentence | None:
    passed = [arms.get(arm, {}).get("quality", {}).get(metrics.TASK_PASS_FRAC) for arm in ("student", "teacher")]
    if not all(passed):
        return None
    num = passed[0]["num"]
    less = round(passed[1]["value"] * num) - round(passed[0]["value"] * num)
    p = verdict.get("task_p_teacher")
    is_chance = "" if p and p["value"] < SIGNIFICANCE else ", which may be chance"
    told = (
        f"It passes {abs(less)} {'fewer' if less > 0 else 'more'} of {num} checked tasks than the teacher{is_chance}."
    )
    return Sentence(told if less else f"It passes as many of {num} checked tasks as the teacher.", artifacts.TASKS)


def _speed(arms: Row, verdict: Row) -> Sentence | None:
    over = verdict.get(metrics.SPEED_OVER_TEACHER)
    if not over:
        return None
    each = " on each GPU" if num_gpus(arms["student"]) else " on this machine"
    if apart := equals_apart(arms):
        told = f"Its speed is unknown: under other work, equal models were timed {apart:.1f} times apart here."
    elif not _is_shown(over):
        told = f"It was not shown to be faster or slower than the teacher{each} (speed ratio {over['value']:.2f})."
    else:
        told = f"It writes {over['value']:.2f} times as many tokens a second as the teacher{each}."
    return Sentence(told, artifacts.SPEED)


def _caution(arms: Row) -> Sentence | None:
    student = arms.get("student", {})
    held_out = student.get("fidelity", {}).get(metrics.FORWARD_KL_NATS)
    if held_out and held_out["num"] < MIN_HELD_OUT:
        prompts = f"{held_out['num']} held-out prompt{'s' * (held_out['num'] != 1)}"
        return Sentence(f"Only {prompts} were measured: too few to rely on these figures.", artifacts.FIDELITY)
    loops = student.get("quality", {}).get(metrics.REPETITION_FRAC)
    if not loops:
        return None
    advice = ": read some before you ship it" if loops["value"] >= MANY_LOOPS_FRAC else ""
    return Sentence(f"{loops['value']:.0%} of its chat answers repeat themselves{advice}.", artifacts.SAMPLES)

"""What an arm takes: weights, memory, energy, money; and after how many tokens the student has paid for itself."""

from collections.abc import Iterable, Mapping
from math import inf, isfinite
from pathlib import Path

from pipeline.console import counting
from pipeline.evaluate import speed
from pipeline.evaluate.speed import Round
from pipeline.machine import hardware
from pipeline.models import lookup
from pipeline.run import metrics
from pipeline.run.rundir import RunDir, Stage
from pipeline.statistics import Figure, exact, repeated

MADE_BY = ("prepare", "generate", "filter", "train")  # evaluate's own time is added as it stands
PER_MILLION = metrics.COST_PER_MILLION_OUTPUT_TOKENS
MACHINE_GPUS = metrics.MACHINE_GPUS
DISTILLATION, SPENT, BREAK_EVEN = (
    metrics.DISTILLATION_S,
    "distillation_cost",
    metrics.BREAK_EVEN_OUTPUT_TOKENS,
)


def machine_gpus(rounds: Iterable[list[Round]]) -> int:
    """GPUs of the machine that is paid for: all that it has, and at least those that an arm ran on; 0 on a CPU."""
    used = max(speed.gpus(of) for of in rounds)
    return max(used, hardware.num_gpus()) if used else 0


def figures(
    folder: Path, rounds: list[Round], price_per_hour: float | None, num_gpus: int = 0
) -> dict[str, Figure | None]:
    """One arm's; None is what this machine does not tell. Costs are of the throughput at the most requests at once, on
    every one of the machine's `num_gpus`."""
    found: dict[str, Figure | None] = {**size(folder)}
    if num_gpus:
        found[speed.GPUS] = exact(speed.gpus(rounds))
    for name in (speed.LOAD, speed.PEAK_RSS, speed.GPU_MEMORY):
        values = [value for measured in rounds if (value := measured[name]) is not None]
        found[name] = exact(max(values)) if values else None
    for name in (speed.CPU_ENERGY, speed.GPU_ENERGY):
        found[name] = speed.over_rounds(rounds, name)
    if price_per_hour is not None:
        per_s = price_per_hour / 3600 / (num_gpus or 1)
        found[PER_MILLION] = repeated([1e6 * per_s / rate for rate in speed.throughputs(rounds)])
    return found


def comparisons(
    run_dir: RunDir, stage: Stage, rounds: dict[str, list[Round]], together: bool, price_per_hour: float | None
) -> dict[str, Figure | None]:
    """What the run took, all tries of every stage and evaluate so far; and when the student has paid for it.

    What a stopped try did after its last file is not known, and nothing is of the tries of a version that did not count
    them: then the time has a `low`, its value, and no `high`. The machine's price cancels out of when it is paid for:
    that is a matter of hours, as long as one machine does it all. Each arm is thought of on all of its GPUs.
    """
    made = [run_dir.manifest(name) for name in MADE_BY]
    spent_s = sum(manifest["elapsed_s"] for manifest in made) + stage.elapsed_s()
    is_known = {manifest.get("num_tries") for manifest in made} | {stage.num_tries} == {1}
    num_gpus = machine_gpus(rounds.values())
    student, teacher = ([(num_gpus or 1) * r for r in speed.throughputs(rounds[arm])] for arm in ("student", "teacher"))
    found: dict[str, Figure | None] = {
        DISTILLATION: _spent(spent_s, is_known),
        BREAK_EVEN: break_even(spent_s, student, teacher, together),
    }
    if num_gpus:
        found[MACHINE_GPUS] = exact(num_gpus)
    if price_per_hour is not None:
        found[SPENT] = _spent(spent_s * price_per_hour / 3600, is_known)
    return found


def break_even(spent_s: float, student: list[float], teacher: list[float], together: bool) -> Figure | None:
    """Output tokens after which the student has saved the time spent: N with N / student + spent = N / teacher.

    `student` and `teacher` are the machine's tokens a second by round. From the medians, with the extremes of the
    rounds; if arms were not timed in turn, the extremes are the best round of one against the worst of the other. None:
    never. No `high`: in some round the student was not the faster one, so it may be never.
    """
    if together:  # the student's rate is the teacher's, times the same ratio that speeds are compared by
        tokens = [_tokens(spent_s, *pair) for pair in zip(student, teacher, strict=True)]
        rate = repeated(teacher)["value"]
        ratio = repeated([of / beside for of, beside in zip(student, teacher, strict=True)])["value"]
        value, low, high = _tokens(spent_s, ratio * rate, rate), min(tokens), max(tokens)
    else:
        value = _tokens(spent_s, repeated(student)["value"], repeated(teacher)["value"])
        low, high = _tokens(spent_s, max(student), min(teacher)), _tokens(spent_s, min(student), max(teacher))
    if not isfinite(value):
        return None
    return {"value": value, "low": low, "high": high if isfinite(high) else None, "num": len(student)}


def size(folder: Path) -> dict[str, Figure]:
    """Parameters, shared ones once, and bytes of the weights on disk."""
    model = lookup.Model(folder.name, folder)
    return {
        metrics.NUM_PARAMETERS: exact(model.num_parameters()),
        metrics.WEIGHTS_BYTES: exact(model.weights_bytes()),
    }


def sentence(arms: dict[str, dict[str, dict[str, Figure | None]]], compared: Mapping[str, Figure | None]) -> str:
    """What the run took, when the student has saved that time, and what both cost if a price is known."""
    spent, priced = compared[DISTILLATION], compared.get(SPENT)
    assert spent is not None  # noqa: S101 - it is a count
    least = "at least " if spent["low"] is not None else ""
    told = f"The run took {least}{spent['value'] / 3600:.2f} hours of this machine{_gpus(compared)}"
    if priced:
        per_million = {arm: arms[arm]["cost"][PER_MILLION] for arm in ("student", "teacher")}
        student, teacher = (f"{figure['value']:.3g}" if figure else "?" for figure in per_million.values())
        told += f" and cost {least}{priced['value']:.3g}. A million output tokens cost {student} (teacher: {teacher})"
    return f"{told}. {_pays(compared[BREAK_EVEN], least)}" + (
        " Costs and tokens assume a machine that serves the arm on all of its GPUs." if _gpus(compared) else ""
    )


def _gpus(compared: Mapping[str, Figure | None]) -> str:
    num_gpus = compared.get(MACHINE_GPUS)
    return f" ({num_gpus['value']:.0f} GPU{'s' * (num_gpus['value'] > 1)})" if num_gpus else ""


def _pays(even: Figure | None, least: str) -> str:
    if even is None:
        return "The run never pays for itself here: on this machine the student is no faster than its teacher."
    low = counting(even["low"]) if even["low"] is not None else ""
    high = counting(even["high"]) if even["high"] is not None else "never"
    even_after = f"{least}{counting(even['value'])} output tokens ({low} to {high}, by round)"
    return f"The student has saved that time after {even_after}."


def _spent(value: float, is_known: bool) -> Figure:
    return {**exact(value), "low": None if is_known else value}


def _tokens(spent_s: float, student: float, teacher: float) -> float:
    saved_s = 1 / teacher - 1 / student  # a token
    return spent_s / saved_s if saved_s > 0 else inf

"""The student's figures as a model card's `model-index` lists them, so that a hub can show them."""

from typing import Any

from huggingface_hub import EvalResult

from pipeline.report.figures import is_number
from pipeline.run import metrics

Row = dict[str, Any]
MEASURED = (  # section and figure of scores.json, what it is called, and on what it was measured
    (
        "fidelity",
        metrics.FORWARD_KL_NATS,
        "forward KL to the teacher, nats a token",
        "held-out prompts of the run",
    ),
    ("fidelity", metrics.TOP1_AGREEMENT_FRAC, "same first choice as the teacher", "held-out prompts of the run"),
    (
        "fidelity",
        metrics.ACCEPTANCE_FRAC,
        "tokens that speculative decoding would accept",
        "held-out prompts of the run",
    ),
    ("quality", metrics.TASK_PASS_FRAC, "tasks of which every check passes", "verifiable tasks"),
    ("quality", metrics.TASK_CHRF, "chrF", "tasks with a reference"),
)


def results(scores: Row) -> list[EvalResult]:
    """One for each figure of the student that was measured; the metric's name holds the interval."""
    student = scores["arms"]["student"]
    found = [
        _result(key, name, measured_on, student.get(section, {}).get(key))
        for section, key, name, measured_on in MEASURED
    ]
    found += [_result(key, key, "lm-evaluation-harness", of) for key, of in student.get("harness", {}).items()]
    return [result for result in found if result is not None]


def _result(key: str, name: str, measured_on: str, figure: Row | None) -> EvalResult | None:
    if not figure or not is_number(figure["value"]):
        return None
    interval = f", 95 % interval {figure['low']:.4g} to {figure['high']:.4g}" if is_number(figure["low"]) else ""
    return EvalResult(
        task_type="text-generation",
        dataset_type=measured_on.replace(" ", "-"),
        dataset_name=f"{measured_on} ({figure['num']})",
        metric_type=key,
        metric_name=f"{name}{interval}",
        metric_value=round(figure["value"], 6),
    )

"""How arms, figures and rules are named and written, the same in tables, charts and text."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from pipeline.console import counted
from pipeline.records import ARMS
from pipeline.run import metrics
from pipeline.run.reasons import REASONS

NONE = "–"
ARM_NAMES = {
    "teacher": "Teacher",
    "student": "Student",
    "sft_only": "SFT only",
    "untrained": "Untrained",
    "other": "Other model",
}
# After Okabe and Ito's colour-blind-safe palette, at a contrast of 3 or more on white and on near-black.
ARM_COLOURS = {
    "teacher": "#009e73",
    "student": "#1a80bb",
    "sft_only": "#d55e00",
    "untrained": "#c46c9c",
    "other": "#8a7fd1",
}


@dataclass(frozen=True)
class Column:
    """One figure of scores.json, as a column."""

    section: str
    key: str
    label: str
    unit: str
    write: Callable[[float], str]
    better: str = ""  # lower | higher


@dataclass(frozen=True)
class Cell:
    """A figure as text; `interval` is empty where there is none."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Table:
    """Arms in rows, figures in columns, and what the intervals are."""

    columns: list[Column]
    rows: list[tuple[str, list[Cell]]]  # (arm, cells)
    notes: list[str]


@dataclass(frozen=True)
class Breakdown:
    """Figures by bucket: the buckets of one dimension in rows, a measure of an arm in each column."""

    title: str
    columns: list[tuple[Column, str]]  # (measure, arm)
    rows: list[tuple[str, int, list[Cell]]]  # (bucket, prompts, cells)


def nats(value: float) -> str:
    return f"{value:.3f}".replace("-0.000", "0.000")


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def tokens(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1000 else whole(value)


def milliseconds(value: float) -> str:
    """`value` is in seconds."""
    return f"{1000 * value:.1f}"


def whole(value: float) -> str:
    """An integer, its thousands set apart by narrow spaces."""
    return f"{value:,.0f}".replace(",", "\u202f")


def times(value: float) -> str:
    return f"{value:.2f}×"


def scaled(value: float, unit: str = "") -> str:
    """Three figures with a decimal prefix: 134.5 M, 269 MB."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()


def seconds(value: float) -> str:
    """A duration: 3.7 s, 12 min 5 s, 2 h 10 min."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _bytes(value: float) -> str:
    return scaled(value, "B")


def _fidelity(section: str) -> list[Column]:
    return [
        Column(section, metrics.FORWARD_KL_NATS, "Forward KL", "nats a token", nats, "lower"),
        Column(section, metrics.REVERSE_KL_NATS, "Reverse KL", "nats a token", nats, "lower"),
        Column(section, metrics.JS_DIVERGENCE_NATS, "JS divergence", "nats a token", nats, "lower"),
        Column(section, metrics.TOP1_AGREEMENT_FRAC, "Same first choice", "share of tokens", percent, "higher"),
        Column(section, metrics.TOP5_OVERLAP_FRAC, "First five shared", "share of five", percent, "higher"),
        Column(section, metrics.ACCEPTANCE_FRAC, "Acceptance", "share of tokens", percent, "higher"),
        Column(section, metrics.NLL_NATS, "NLL of the answers", "nats a token", nats, "lower"),
    ]


def _column(columns: list[Column], key: str) -> Column:
    return next(column for column in columns if column.key == key)


FIDELITY = _fidelity("fidelity")
FIDELITY_CHAT = _fidelity("fidelity_chat")
FIDELITY_OWN = [
    *(
        _column(_fidelity("fidelity_own"), key)
        for key in (
            metrics.FORWARD_KL_NATS,
            metrics.REVERSE_KL_NATS,
            metrics.TOP1_AGREEMENT_FRAC,
            metrics.ACCEPTANCE_FRAC,
        )
    ),
    Column(
        "own_over_chat",
        metrics.FORWARD_KL_NATS,
        "Forward KL, own ÷ teacher's",
        "of the same questions",
        times,
        "lower",
    ),
    Column(
        "own_over_chat",
        metrics.REVERSE_KL_NATS,
        "Reverse KL, own ÷ teacher's",
        "of the same questions",
        times,
        "lower",
    ),
]
CALIBRATION = [
    Column("fidelity", metrics.CONFIDENCE_FRAC, "Confidence", "in its first choice", percent),
    Column("fidelity", metrics.ACCURACY_FRAC, "Accuracy", "of its first choice", percent, "higher"),
    Column("fidelity", metrics.ECE_FRAC, "Calibration error", "15 bins of equal mass", percent, "lower"),
    Column("fidelity", metrics.BRIER_SCORE, "Brier score", "0 to 2", nats, "lower"),
]
HEALTH = [
    Column("quality", metrics.TRUNCATED_FRAC, "Cut off", "share of answers", percent, "lower"),
    Column("quality", metrics.REPETITION_FRAC, "Loops", "share of answers", percent, "lower"),
    Column("quality", "answer_tokens", "Length", "tokens an answer", tokens),
]
TASKS = [
    Column("quality", metrics.TASK_PASS_FRAC, "All that is asked", "share of items", percent, "higher"),
    Column("quality", metrics.TASK_LOOSE_PASS_FRAC, "Loosely", "share of items", percent, "higher"),
    Column("quality", metrics.TASK_CHECK_FRAC, "Checks passed", "mean share an item", percent, "higher"),
    Column("quality", metrics.TASK_ROUGE_L, "ROUGE-L", "of the references", nats, "higher"),
    Column("quality", metrics.TASK_CHRF, "chrF", "of the references", nats, "higher"),
]
SPEED = [
    Column("speed", metrics.OUTPUT_TOKENS_PER_S, "Throughput", "tokens/s, all requests", tokens, "higher"),
    Column("speed", metrics.FIRST_TOKEN_S, "First token", "ms, one request", milliseconds, "lower"),
    Column("speed", metrics.TIME_PER_TOKEN_S, "Each further token", "ms, one request", milliseconds, "lower"),
]
SIZE = [
    Column("cost", metrics.NUM_PARAMETERS, "Parameters", "count", scaled),
    Column("cost", metrics.WEIGHTS_BYTES, "Weights", "on disk", _bytes),
]
HEADLINE = [
    *(
        _column(FIDELITY, key)
        for key in (metrics.FORWARD_KL_NATS, metrics.TOP1_AGREEMENT_FRAC, metrics.ACCEPTANCE_FRAC)
    ),
    SPEED[0],
    SIZE[0],
]
NOTES = {  # and of how many things, by name
    "fidelity": ("Fidelity: 95 % bootstrap interval over {num}.", "held-out prompt"),
    "fidelity_chat": ("Fidelity on chat answers: 95 % bootstrap interval over {num}.", "item"),
    "fidelity_own": ("Fidelity on own answers: 95 % bootstrap interval over {num}.", "item"),
    "quality": ("Health: 95 % bootstrap interval over {num}.", "chat item"),
    "tasks": ("Tasks: 95 % bootstrap interval over {num}.", "item"),
    "speed": ("Speed: median of {num}, with the slowest and the fastest (no 95 % interval).", "round"),
}
DIMENSIONS = {  # of scores.json's breakdowns, for people
    "position": "Place of the token in the answer",
    "entropy": "The teacher's entropy, nats",
    "length": "Length of the answer, tokens",
    "turn": "Turn of the conversation",
    "category": "Category of the prompt",
}
BROKEN_DOWN = {  # which section, and its texts
    "fidelity": "the teacher's answers to held-out prompts",
    "fidelity_chat": "the teacher's answers to the chat set",
    "fidelity_own": "each arm's own answers to the chat set",
}
VERDICT = [
    (metrics.RETAINED_QUALITY, "the teacher's quality, by tasks"),
    (metrics.GAP_CLOSED, "the gap in tasks between untrained student and teacher"),
    ("kl_over_untrained", "the untrained student's KL"),
    ("kl_over_sft_only", "the SFT-only student's KL"),
    (metrics.SPEED_OVER_TEACHER, "the teacher's throughput (per GPU, if there are GPUs)"),
    (metrics.PARAMETERS_OVER_TEACHER, "the teacher's parameters"),
]


def task_categories(arms: dict[str, Any]) -> list[Column]:
    """A column for each category of tasks, in the order of the teacher's figures."""
    keys = dict.fromkeys(key for arm in present_arms(arms) for key in arms[arm].get("quality", {}))
    others = {column.key for column in TASKS}
    return [
        Column("quality", key, words(key[len("task_") : -len("_pass_frac")]), "share of items", percent, "higher")
        for key in keys
        if key.startswith("task_") and key.endswith("_pass_frac") and key not in others
    ]


def present_arms(arms: dict[str, Any]) -> list[str]:
    """The arms that were measured, in the order of records.ARMS."""
    return [arm for arm in ARMS if arm in arms]


def table(arms: dict[str, Any], columns: list[Column]) -> Table:
    """A table of scores.json's `arms`; what is missing is a dash."""
    rows = [(arm, [cell(lookup(arms, arm, c), c.write) for c in columns]) for arm in present_arms(arms)]
    return Table(columns, rows, _notes(arms, columns))


def breakdowns(arms: dict[str, Any], section: str) -> list[Breakdown]:
    """A table for each dimension: forward KL and first choice of the arms but the teacher, bucket by bucket."""
    shown = [column for column in FIDELITY if column.key in (metrics.FORWARD_KL_NATS, metrics.TOP1_AGREEMENT_FRAC)]
    names = [arm for arm in present_arms(arms) if arm != "teacher" and arms[arm].get("breakdowns", {}).get(section)]
    found = {arm: arms[arm]["breakdowns"][section] for arm in names}
    tables = []
    for dimension, title in DIMENSIONS.items():
        buckets = list(dict.fromkeys(bucket for arm in names for bucket in found[arm].get(dimension, {})))
        rows = []
        for bucket in buckets:
            of = [found[arm].get(dimension, {}).get(bucket, {}) for arm in names]
            nums = [figure["num"] for figures in of for figure in figures.values() if figure]
            cells = [cell(figures.get(column.key), column.write) for column in shown for figures in of]
            rows.append((bucket, max(nums, default=0), cells))
        if rows:
            tables.append(Breakdown(title, [(column, arm) for column in shown for arm in names], rows))
    return tables


def lookup(arms: dict[str, Any], arm: str, column: Column) -> dict[str, Any] | None:
    """A figure {"value", "low", "high", "num"}, or None where it was not measured."""
    figure = arms.get(arm, {}).get(column.section, {}).get(column.key)
    return figure if figure and is_number(figure.get("value")) else None


def cell(figure: dict[str, Any] | None, write: Callable[[float], str]) -> Cell:
    """A figure and its interval; an interval that reads like the value itself is left out."""
    if not figure or not is_number(figure.get("value")):
        return Cell(NONE)
    value, low, high = write(figure["value"]), figure.get("low"), figure.get("high")
    if not is_number(low) or not is_number(high) or {write(low), write(high)} == {value}:
        return Cell(value)
    return Cell(value, f"{write(low).removesuffix(' %').removesuffix('×')} – {write(high)}")


def verdict_cells(verdict: dict[str, Any]) -> list[tuple[Cell, str]]:
    """The comparisons that the verdict rests on, each with its meaning.

    Shares of the teacher's tasks are among them only if their interval is narrower than the value is large: a ratio of
    a few passes says nothing.
    """
    return [(cell(verdict[key], times), meaning) for key, meaning in VERDICT if _is_telling(key, verdict.get(key))]


def _is_telling(key: str, figure: dict[str, Any] | None) -> bool:
    if not figure or key not in (metrics.RETAINED_QUALITY, metrics.GAP_CLOSED):
        return bool(figure)
    low, high = figure["low"], figure["high"]
    return is_number(low) and is_number(high) and high - low < figure["value"]


def num_range(arms: dict[str, Any], columns: list[Column]) -> str:
    """How many things the columns' intervals are about: `50`, or `48–50` where figures differ; empty if unknown."""
    found = (lookup(arms, arm, column) for arm in arms for column in columns)
    nums = {figure["num"] for figure in found if figure and figure.get("num")}
    return "" if not nums else f"{min(nums)}" if len(nums) == 1 else f"{min(nums)}–{max(nums)}"


def setting_text(reason: str, settings: dict[str, Any], limits: dict[str, Any] | None = None) -> str:
    """`max_tokens = 2048`, `off`, or `always` for a rule without a setting; with the run's own limit where it has one.

    `settings` and `limits` are those of filter's manifest.
    """
    found = REASONS.get(reason)
    name = found and found.setting
    if found is None or name is None:
        return "always"
    if name not in settings:
        return NONE
    value = settings[name]
    if value is None or value is False:
        return "off"
    if value is True:
        return "on"
    value = " / ".join(map(str, value)) if isinstance(value, list) else value
    limit = (limits or {}).get(found.limit)
    return f"{name} = {value}" + (f": {found.bound} {limit:.3g}" if is_number(limit) else "")


def rule_unit(reason: str, settings: dict[str, Any]) -> str:
    """What a rule's score counts; `settings` are those of filter's manifest."""
    if reason == "best_of_n" and settings.get("selection.best_by") == "judge":
        return "grade, 1-10"
    return REASONS[reason].unit if reason in REASONS else ""


def words(name: str) -> str:
    """A name of the code as people read it: `too_short` is `too short`."""
    return name.replace("_", " ")


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _notes(arms: dict[str, Any], columns: list[Column]) -> list[str]:
    kinds = dict.fromkeys(_kind(column) for column in columns)
    nums = {kind: num_range(arms, [column for column in columns if _kind(column) == kind]) for kind in kinds}
    told = {kind: NOTES[kind] for kind, num in nums.items() if num and kind in NOTES}
    return [note.format(num=counted(nums[kind], noun)) for kind, (note, noun) in told.items()]


def _kind(column: Column) -> str:
    """What a column's intervals are over: the note to it is found by that."""
    return "tasks" if column.key.startswith("task_") else column.section

"""Which answers the teacher itself finds likelier, for the report: its preference for its own kind, no win-rate."""

from typing import Any

from pipeline.report.figures import NONE, Cell, cell, percent, whole

RIVALS = {"sft_only": "SFT only"}


def rows(verdict: dict[str, Any]) -> list[tuple[str, list[Cell]]]:
    """(whose answers the student's stood beside, [share likelier, nats a token more, items]); only what is there."""
    found = []
    for rival, name in RIVALS.items():
        share, nats = (verdict.get(f"self_preference_{unit}_over_{rival}") for unit in ("frac", "nats"))
        if share or nats:
            num = Cell(whole(share["num"])) if share else Cell(NONE)
            found.append((name, [cell(share, percent), cell(nats, _signed), num]))
    return found


def _signed(value: float) -> str:
    return f"{value:+.3f}"

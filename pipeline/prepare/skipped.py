"""What of the sources gave no prompt, for people: rows that can't be used, by reason, and columns that none has."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipeline.config import Source
from pipeline.text.prompt_templates import hint, listed

MAX_REASONS = 3
NAMES = ("messages", "completion", "tools", "category")  # settings that name a column which a row may lack


class Skipped:
    """Rows that can't be used, counted by reason; reasons that differ in a number, such as a length, are one."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def add(self, place: str, problem: str) -> None:
        reason = re.sub(r"\d+", "0", problem)
        self._first.setdefault(reason, f"{problem} ({place})")
        self._counts[reason] += 1

    def told(self) -> str:
        """`3 × empty prompt: a user message has no text (a.jsonl:2)`, the commonest first, each with one place."""
        common = self._counts.most_common(MAX_REASONS)
        parts = [f"{num} × {self._first[reason]}" for reason, num in common]
        if num := self._counts.total() - sum(num for _, num in common):
            parts.append(f"{num} × other reasons")
        return "; ".join(parts)


class Unseen:
    """The columns that a source names and that no row has had so far."""

    def __init__(self, source: Source, is_scored: bool) -> None:
        fields = Source.model_fields
        names = [name for name in NAMES if name != "completion" or is_scored]
        self._setting = {value: name for name in names if (value := getattr(source, name)) != fields[name].default}
        self._columns: dict[str, None] = {}  # an ordered set

    def see(self, row: dict[str, Any]) -> None:
        if self._setting:
            self._columns |= dict.fromkeys(row)

    def told(self) -> Iterable[str]:
        """A line for each; none if no row was read."""
        for column, setting in self._setting.items() if self._columns else ():
            if column not in self._columns:
                meant = hint(column, self._columns)
                yield f"no row has the column {column!r} that `{setting}` names, only {listed(self._columns)}{meant}"

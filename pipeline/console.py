"""What people see while a stage works: lines on standard error, and a progress bar with rate and time left."""

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False)
SECONDS_BETWEEN_LINES = 30


def say(text: str) -> None:
    """One line; square brackets in it are text, not markup."""
    console.print(text, markup=False)


def progress(unit: str) -> Progress:
    """A bar whose task has a `note` field, e.g. tokens/s; in a log file, a line every half minute."""
    return _Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=2,
    )


class _Progress(Progress):
    """Says where it stands as plain lines too, where no terminal shows the bar."""

    _said = 0.0

    def start(self) -> None:
        self._said = time.monotonic()
        super().start()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        if not self.console.is_terminal and time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            task = next(task for task in self.tasks if task.id == task_id)
            left = "" if task.time_remaining is None else f", {task.time_remaining / 60:.0f} min left"
            say(f"{task.description}: {task.completed:.0f} of {task.total:.0f}, {task.fields['note']}{left}")

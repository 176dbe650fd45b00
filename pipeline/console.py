"""What people see while a stage works: lines on standard error, and a progress bar with rate and time left."""

import os
import time
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
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
from rich.text import Text

from pipeline.errors import UserError

HARMLESS = "\u200c\u200d"  # joiners: invisible, but emoji and several scripts are made with them
# control, format (bidi), lone surrogates, line and paragraph separators
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
console = Console(stderr=True, highlight=False)
SECONDS_BETWEEN_LINES = 30


def say(text: str) -> None:
    """One line; square brackets in it are text, not markup."""
    console.print(text, markup=False, soft_wrap=True)


def counted(num: int | str, noun: str) -> str:
    """`1 prompt`, `2 prompts`; the number may be written out already, as `10 000` or `48–50`."""
    return f"{num} {noun}{'' if str(num) == '1' else 's'}"


def counting(value: float) -> str:
    """A large count in two figures: `430,000`, `1.2 million`."""
    for word, size in (("billion", 1e9), ("million", 1e6)):
        if abs(value) >= size:
            return f"{value / size:.2g} {word}" if value < 100 * size else f"{value / size:,.0f} {word}"
    return f"{float(f'{value:.2g}'):,.0f}"


@contextmanager
def user_errors() -> Iterator[None]:
    """A user's mistake is one line and exit code 2; RETORT_DEBUG=1 shows the traceback above it, causes included."""
    try:
        yield
    except UserError as error:
        if os.environ.get("RETORT_DEBUG", "0") not in ("", "0"):
            error.__suppress_context__ = False
            traceback.print_exception(error)
        console.print(Text.assemble(("error: ", "bold red"), escaped(str(error))), soft_wrap=True)
        raise SystemExit(2) from None


def escaped(text: str) -> str:
    """The text with all that could move a terminal's cursor, or turn text around, as Python escapes; one line."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in UNSAFE and character not in HARMLESS
        else character
        for character in text
    )


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
            left = "" if task.time_remaining is None else f"{task.time_remaining / 60:.1f} min left"
            parts = [f"{task.completed:.0f} of {task.total:.0f}", task.fields["note"], left]
            say(f"{task.description}: {', '.join(filter(None, parts))}")

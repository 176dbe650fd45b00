"""The task set that evaluate asks: chat items whose answers a program can check, one JSON object a line."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.eval_sets import chat_set, checkers


class Check(BaseModel):
    """One thing that an answer must do."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str  # of checkers.KINDS
    args: dict[str, Any] = {}
    turn: int | None = Field(default=None, ge=0)  # whose answer, from 0; null: the last one's
    earlier: int | None = Field(default=None, ge=0)  # the turn whose answer this one is compared with


class TaskItem(chat_set.ChatItem):
    """One line of the task set."""

    category: str = Field(pattern="^[a-z][a-z_]*$")  # part of the names of its figures
    checks: tuple[Check, ...] = Field(min_length=1)
    reference: str | None = Field(default=None, min_length=1)  # a good last answer, for ROUGE-L and chrF

    @model_validator(mode="after")
    def _can_be_checked(self) -> "TaskItem":
        for check in self.checks:
            turn = self.turn_of(check)
            if turn >= len(self.turns):
                raise ValueError(f"{check.kind}: there is no turn {turn}, the first is 0")
            if check.earlier is not None and check.earlier >= turn:
                raise ValueError(f"{check.kind}: turn {check.earlier} is not earlier than turn {turn}")
            fault = checkers.fault(check.kind, check.args if check.earlier is None else check.args | {"earlier": ""})
            if fault:
                raise ValueError(fault)
        return self

    def turn_of(self, check: Check) -> int:
        """The turn whose answer is checked, from 0."""
        return len(self.turns) - 1 if check.turn is None else check.turn


def load(path: Path, limit: int | None) -> list[TaskItem]:
    """The items, at most `limit`, taken from the categories in turn. Raises UserError with file and line."""
    return chat_set.load_as(TaskItem, path, limit, "task", "evaluate.tasks.path")

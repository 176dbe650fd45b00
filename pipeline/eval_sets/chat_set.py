"""The chat set that evaluate asks: items of one or more turns, one JSON object a line."""

from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.data import shipped
from pipeline.errors import UserError
from pipeline.records import UNCATEGORISED
from pipeline.run.files import json_lines


class ChatItem(BaseModel):
    """One line of the chat set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = Field(min_length=1)
    category: str = UNCATEGORISED
    system: str | None = None
    turns: tuple[str, ...] = Field(min_length=1)


ItemType = TypeVar("ItemType", bound=ChatItem)


def load(path: Path, limit: int | None) -> list[ChatItem]:
    """The items, at most `limit`, taken from the categories in turn. Raises UserError with file and line."""
    return load_as(ChatItem, path, limit, "chat", "evaluate.chat_set")


def load_as(kind: type[ItemType], path: Path, limit: int | None, what: str, setting: str) -> list[ItemType]:
    """The items of a set of this kind, which errors call a `what` set."""
    found = shipped.find(path)
    if not found.is_file():
        raise UserError(f"{path}: no such {what} set ({setting}; null for none)")
    items: list[ItemType] = []
    for number, line in enumerate(json_lines(found), 1):
        if not line.strip():
            continue
        try:
            items.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise UserError(f"{path}:{number}: not a {what} item: {told(error)}") from None
    if not items:
        raise UserError(f"{path}: no {what} item in it ({setting}; null for none)")
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise UserError(f"{path}: two items have the same id: {twice[0]}")
    return items if limit is None else _spread(items)[:limit]


def told(error: ValidationError) -> str:
    """The first thing that is wrong with an item, and in which of its fields."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} {first['msg'].removeprefix('Value error, ')}".strip()


def _spread(items: list[ItemType]) -> list[ItemType]:
    """One item of each category, then the next of each."""
    groups: dict[str, list[ItemType]] = {}
    for item in items:
        groups.setdefault(item.category, []).append(item)
    return [item for layer in zip_longest(*groups.values()) for item in layer if item is not None]

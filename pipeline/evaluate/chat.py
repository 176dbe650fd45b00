"""The chat set: items of one or two turns, and an arm's answers to them, turn after turn."""

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import models
from pipeline.config import Evaluate
from pipeline.errors import UserError
from pipeline.evaluate.served import Served
from pipeline.repetition import duplicate_ngram_frac, longest_sentence_run

MAX_SENTENCE_RUN = 3
MAX_DUPLICATE_NGRAM_FRAC = 0.35  # both as filter has them by default


class Item(BaseModel):
    """One line of the chat set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = Field(min_length=1)
    category: str = "uncategorised"
    system: str | None = None
    turns: tuple[str, ...] = Field(min_length=1)


def load(path: Path, limit: int | None) -> list[Item]:
    """The items, at most `limit`, taken from the categories in turn. Raises UserError with file and line."""
    if not path.is_file():
        raise UserError(f"{path}: no such chat set (evaluate.chat_set; null for none)")
    items: list[Item] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            items.append(Item.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{path}:{number}: not a chat item: {where} {first['msg']}".replace("  ", " ")) from None
    if len({item.id for item in items}) < len(items):
        raise UserError(f"{path}: two items have the same id")
    return items if limit is None else _spread(items)[:limit]


def answer(arm: Served, items: list[Item], tokenizer: Any, template_kwargs: dict[str, Any], settings: Evaluate) -> list:
    """Rows of records.SAMPLES: every turn of every item, each given the arm's own earlier answers."""
    rows: list[dict[str, Any]] = []
    history = {
        item.id: [{"role": "system", "content": item.system}] if item.system else [] for item in items
    }  # each arm's own conversation
    for turn in range(max((len(item.turns) for item in items), default=0)):
        asked = [item for item in items if len(item.turns) > turn]
        for item in asked:
            history[item.id].append({"role": "user", "content": item.turns[turn]})
        prompts = {item.id: models.render(tokenizer, history[item.id], template_kwargs) for item in asked}
        asked = [item for item in asked if len(prompts[item.id]) < arm.context_tokens]  # a talk may outgrow the context
        reply = arm.ask(
            [
                {
                    "request_id": item.id,
                    "prompt_token_ids": prompts[item.id],
                    "max_tokens": settings.max_tokens,
                    "temperature": settings.temperature,
                    "seed": settings.seed,
                }
                for item in asked
            ]
        )
        for item, given in zip(asked, reply["answers"], strict=True):
            text = tokenizer.decode(given["token_ids"], skip_special_tokens=True).strip()
            history[item.id].append({"role": "assistant", "content": text})
            rows.append(
                {
                    "item_id": item.id,
                    "category": item.category,
                    "turn": turn,
                    "arm": arm.name,
                    "question": item.turns[turn],
                    "answer": text,
                    "finish_reason": given["finish_reason"],
                    "num_tokens": len(given["token_ids"]),
                    "prompt_token_ids": prompts[item.id],
                    "token_ids": given["token_ids"],
                }
            )
    return rows


def is_repetitive(text: str) -> bool:
    """Whether an answer goes round in circles."""
    return longest_sentence_run(text) > MAX_SENTENCE_RUN or duplicate_ngram_frac(text) > MAX_DUPLICATE_NGRAM_FRAC


def _spread(items: list[Item]) -> list[Item]:
    """One item of each category, then the next of each."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.category, []).append(item)
    return [item for layer in zip_longest(*groups.values()) for item in layer if item is not None]


def to_lines(items: list[Item]) -> str:
    """The items as the text they are hashed by."""
    return json.dumps([item.model_dump() for item in items], ensure_ascii=False)

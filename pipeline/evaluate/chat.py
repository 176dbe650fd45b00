"""An arm's answers to the chat set, or to the tasks, turn after turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import models, reasoning
from pipeline.chat_set import Item
from pipeline.config import Evaluate
from pipeline.served import Served


@dataclass(frozen=True)
class Manner:
    """How an arm is spoken to: its tokenizer with the chat template, and which tags are around its reasoning."""

    tokenizer: Any
    template_kwargs: dict[str, Any]
    reasoning_tags: reasoning.Tags | None = None


def answer(arm: Served, items: Sequence[Item], manner: Manner, settings: Evaluate) -> list[dict[str, Any]]:
    """Rows of records.SAMPLES: every turn of every item, each given the arm's own earlier answers.

    With reasoning tags, reasoning is left out of an answer's text, and of what the later turns are given.
    """
    rows: list[dict[str, Any]] = []
    history = {
        item.id: [{"role": "system", "content": item.system}] if item.system else [] for item in items
    }  # each arm's own conversation
    for turn in range(max((len(item.turns) for item in items), default=0)):
        asked = [item for item in items if len(item.turns) > turn]
        for item in asked:
            history[item.id].append({"role": "user", "content": item.turns[turn]})
        prompts = {item.id: models.render(manner.tokenizer, history[item.id], manner.template_kwargs) for item in asked}
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
            ids = given["token_ids"]
            text = reasoning.split(manner.tokenizer, manner.reasoning_tags, prompts[item.id], ids).text
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

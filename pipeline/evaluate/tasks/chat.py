"""An arm's answers to the chat set, or to the tasks, turn after turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Evaluate
from pipeline.eval_sets.chat_set import ChatItem
from pipeline.eval_sets.eval_prompts import conversation
from pipeline.inference.child_engine import ChildEngine
from pipeline.models.tokenizer import reasoning
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.rows import SampleRow


@dataclass(frozen=True)
class ChatFormat:
    """How an arm is spoken to: its chat template, and which tags are around its reasoning."""

    template: ChatTemplate
    reasoning_tags: reasoning.Tags | None = None

    @property
    def tokenizer(self) -> Any:
        return self.template.tokenizer


def answer(arm: ChildEngine, items: Sequence[ChatItem], chat_format: ChatFormat, settings: Evaluate) -> list[SampleRow]:
    """Rows of records.SAMPLES: every turn of every item, each given the arm's own earlier answers.

    With reasoning tags, reasoning is left out of an answer's text, and of what the later turns are given. A talk ends
    where it outgrows the arm's context, and after an empty answer that the arm's chat template refuses.
    """
    rows: list[SampleRow] = []
    given_answers: dict[str, list[str]] = {item.id: [] for item in items}
    for turn in range(max((len(item.turns) for item in items), default=0)):
        asked = [item for item in items if len(item.turns) > turn and len(given_answers[item.id]) == turn]
        talks = {item.id: conversation(item, given_answers[item.id]) for item in asked}
        prompts = {
            name: chat_format.template.render(talk) for name, talk in talks.items() if chat_format.template.takes(talk)
        }
        asked = [item for item in asked if len(prompts.get(item.id, ())) in range(1, arm.context_tokens)]
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
            text = reasoning.split(chat_format.tokenizer, chat_format.reasoning_tags, prompts[item.id], ids).text
            given_answers[item.id].append(text)
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

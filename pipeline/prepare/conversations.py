"""A conversation on its way to be a prompt: who it is, on which side of the split, and its row of PROMPTS."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.prepare import sources
from pipeline.prepare.sources import Message, Messages
from pipeline.records import is_drawn, split_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A conversation to be gone on with, and the answer that is to be scored, where that is not the teacher's own."""

    place: str
    category: str
    messages: Messages
    tools: list[Any] | None = None
    completion: Message | None = None
    origin: str = ""  # the source, without the row
    licence: str | None = None
    redacted: dict[str, int] = field(default_factory=dict)  # see records.PROMPTS, here and below
    safety: dict[str, float] = field(default_factory=dict)
    method: str = "source"
    parents: tuple[str, ...] = ()
    template: str | None = None
    conversation_id: str | None = None  # where it is not its own
    question: str | None = None  # what is asked, where it stands below a passage

    def identifier(self) -> str:
        return prompt_id([*self.messages, *filter(None, [self.completion])], self.tools)

    def side(self) -> str:
        """What decides the split: of answers to be scored the first turn, so that no conversation is on both sides."""
        if self.conversation_id is not None:
            return self.conversation_id
        return prompt_id(sources.first_turn(self.messages)) if self.completion else self.identifier()

    def is_held_out(self, held_out_frac: float) -> bool:
        """What the teacher wrote was made from prompts to train on, and is one."""
        return split_of(self.side(), self.method, held_out_frac) == "held_out"


def prompt_id(messages: Messages, tools: list[Any] | None = None) -> str:
    """16 hexadecimal digits made from the conversation, and the tools where there are some, alone."""
    identity = messages if tools is None else {"messages": messages, "tools": tools}
    return hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode()).hexdigest()[:16]


def is_taken(asked: Asked, weight: float) -> bool:
    """Whether a prompt is in the share of its source that is taken: one that is stays so if the share grows.

    All answers to be scored of a conversation are, or none.
    """
    return weight == 1 or is_drawn("weight", asked.side(), weight)


class Renderer:
    """Conversations as the teacher sees them."""

    def __init__(self, config: Config, teacher: lookup.Model, template: ChatTemplate, context: int) -> None:
        self._config, self._context, self.template, self.teacher = config, context, template, teacher
        self._stop_ids, self._vocab_size = teacher.stop_ids(template.tokenizer), teacher.vocab_size()

    def columns(self, asked: Asked) -> Row:
        """The columns of token ids.

        Raises UserError where the template refuses it, the context is too short, or a token is not the teacher's.
        """
        prompt, completion = self.template.render(asked.messages, asked.tools), None
        if asked.completion is not None:
            completion = self.template.render_completion(asked.messages, asked.completion, asked.tools, self._stop_ids)
        self._check_length(prompt, completion)
        if max([*prompt, *(completion or ())], default=0) >= self._vocab_size:
            raise UserError("the conversation holds a token that the teacher has no embedding for")
        return {"prompt_token_ids": prompt, "completion_token_ids": completion}

    def _check_length(self, prompt: list[int], completion: list[int] | None) -> None:
        P, max_tokens = len(prompt), self._config.generate.max_tokens
        if completion is None and P + max_tokens > self._context:
            raise UserError(
                f"prompt too long: its {P} tokens and generate.max_tokens={max_tokens}"
                f" exceed the teacher's context of {self._context}"
            )
        if completion is not None and P + len(completion) >= self._context:  # vLLM draws one token more
            raise UserError(
                f"conversation too long: its {P} + {len(completion)} tokens do not fit the teacher's context"
                f" of {self._context} with one to spare"
            )


def row(asked: Asked, held_out_frac: float) -> Row:
    """A row of PROMPTS, but for what screening and rendering add."""
    return {
        "conversation_id": asked.side(),
        "prompt_id": asked.identifier(),
        "messages": [_stored(message) for message in asked.messages],
        "tools": None if asked.tools is None else json.dumps(asked.tools, ensure_ascii=False),
        "category": asked.category,
        "split": split_of(asked.side(), asked.method, held_out_frac),
        "source": asked.place,
        "method": asked.method,
        "parents": list(asked.parents),
        "template": asked.template,
    }


def of_row(row: Row, completion: str | None = None) -> Asked:
    """The conversation that a row of PROMPTS was made from; `completion` is the text of the answer to be scored."""
    place = row["source"]
    return Asked(
        place=place,
        category=row["category"],
        messages=[_given(message) for message in row["messages"]],
        tools=None if row["tools"] is None else json.loads(row["tools"]),
        completion=None if completion is None else {"role": "assistant", "content": completion},
        origin=place.rpartition(":")[0] if row["method"] == "source" else "",
        licence=row["licence"],
        redacted=dict(row["redacted"] or ()),
        safety=dict(row["safety"] or ()),
        method=row["method"],
        parents=tuple(row["parents"]),
        template=row["template"],
        conversation_id=row["conversation_id"],
    )


def _given(message: Message) -> Message:
    """A message of PROMPTS as it was before `_stored`."""
    given = {key: value for key, value in message.items() if value is not None or key == "content"}
    calls = given.get("tool_calls")
    return given if calls is None else {**given, "tool_calls": json.loads(calls)}


def _stored(message: Message) -> Message:
    """A message as PROMPTS has it: tool calls as JSON."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": json.dumps(calls, ensure_ascii=False)} if calls else message

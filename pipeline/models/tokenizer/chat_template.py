"""Conversations as a tokenizer's chat template writes them, and what the template can't take, found by trying it.

Templates differ. Some refuse a system message, or leave it out without a word; some want user and assistant to take
turns; some want a tool call's arguments as JSON text, others as an object. Each template is tried once on a few made-up
conversations. From then on every conversation is put into the shape that it takes, the same in every stage.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from typing import Any

from pipeline.errors import UserError
from pipeline.run.files import first_line

Message = dict[str, Any]
Messages = list[Message]

CLOCK = "strftime_now"  # the function by which a template asks for today's date
MOVED, MERGED = "system_in_user_turn", "turns_merged"
CHANGES = {  # to conversations, by the names under which they are counted
    MOVED: "the teacher's chat template does not take some system messages; their text joins the next user message",
    MERGED: "the teacher's chat template wants user and assistant to take turns; a role's messages in a row are joined",
}
GAP = "\n\n"  # between texts that become one message
# what no template holds: the texts of the conversations on which templates are tried
SYSTEM, USER, ANSWER, LATER, TOOL, CALLED, KEY, VALUE, RESULT = (
    f"{word}5b0e{number}f43" for number, word in enumerate(("sy", "us", "an", "la", "to", "ca", "ke", "va", "re"))
)
CALL_ID = "c4ll00001"  # Mistral's are 9 letters or digits
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "Look it up.",
            "parameters": {"type": "object", "properties": {KEY: {"type": "string"}}, "required": [KEY]},
        },
    }
]


@dataclass(frozen=True)
class Shape:
    """What a template takes, and what has to be made of a conversation for it."""

    takes_system: bool = True  # else the text goes before that of the next user message
    takes_later_system: bool = True  # the same for a system message that is not the first message
    takes_any_order: bool = True  # else messages of one role that follow each other become one
    takes_empty_answers: bool = True
    shows_tools: bool = True
    call_arguments: str = "object"  # or `text`: JSON
    call_content: str | None = ""  # of a message that only calls tools


class ChatTemplate:
    """A tokenizer's chat template, with the variables and the date that a run fixes for it.

    `day` is what the template is told when it asks for today's date, such as 2026-11-30; None: the day it is.
    """

    def __init__(self, tokenizer: Any, variables: dict[str, Any] | None = None, day: str | None = None) -> None:
        self.tokenizer = tokenizer
        self._variables = {**(variables or {}), **({CLOCK: date.fromisoformat(day).strftime} if day else {})}

    @cached_property
    def shape(self) -> Shape:
        """What the template takes."""
        return _tried(self)

    def facts(self) -> dict[str, Any]:
        """The shape, for a manifest."""
        return asdict(self.shape)

    def render(self, messages: Messages, tools: list[Any] | None = None) -> list[int]:
        """Token ids of a conversation with the template applied and the assistant's turn opened.

        Raises UserError where the template refuses the conversation, or leaves out tools, calls or their results.
        """
        return self.apply(messages, tools, add_generation_prompt=True, tokenize=True)

    def render_user_turn(self, system: str) -> list[int]:
        """Token ids of a conversation that ends where the user's message begins, so that a model goes on with that;
        after a system message, if `system` is not empty.

        Raises UserError where the template refuses the conversation, or does not write a user's message as it stands.
        """
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": USER})
        text, found, _ = self.apply(messages, add_generation_prompt=False, tokenize=False).partition(USER)
        if not found or not text:
            raise UserError("the teacher's chat template opens no user turn that a model could complete (magpie)")
        return self._cut(text)

    def render_completion(
        self, messages: Messages, completion: Message, tools: list[Any] | None, stop_ids: frozenset[int]
    ) -> list[int]:
        """Token ids of an assistant's message as the teacher would have produced them after `render`'s, the last of
        them an end-of-turn; what the template writes behind that is left out.

        Raises UserError where the template does not write the conversation on from the prompt, or never ends the turn.
        """
        prompt = self.apply(messages, tools, add_generation_prompt=True, tokenize=False)
        whole = self.apply([*messages, completion], tools, add_generation_prompt=False, tokenize=False)
        if not whole.startswith(prompt):
            shared = next((n for n, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
            raise UserError(
                "the teacher's chat template does not write this answer as the teacher would begin its own: it opens"
                f" the turn with {prompt[shared:][:30]!r}, but writes {whole[shared:][:30]!r} before this answer (if"
                " that is about reasoning, see teacher.chat_template_kwargs)"
            )
        prompt_ids, whole_ids = self._cut(prompt), self._cut(whole)
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            token_ids = whole_ids[len(prompt_ids) :]
        else:  # a token would reach over the border: the teacher begins a new one there
            token_ids = self._cut(whole[len(prompt) :])
        last = max((place for place, token in enumerate(token_ids) if token in stop_ids), default=None)
        if last is None:
            raise UserError("the teacher's chat template does not end an answer with an end-of-turn token")
        # some templates end the text as well, after the turn: what is between is their own, too
        while earlier := [
            p for p in range(last) if token_ids[p] in stop_ids and self._is_blank(token_ids[p + 1 : last])
        ]:
            last = earlier[-1]
        return token_ids[: last + 1]

    def apply(self, messages: Messages, tools: list[Any] | None = None, **how: Any) -> Any:
        """What the tokenizer's own apply_chat_template gives for the conversation in the shape that it takes.

        `how` goes to it as it stands: add_generation_prompt, tokenize, ... Raises UserError as `render` does.
        """
        if tools and not self.shape.shows_tools:
            raise UserError(
                "the teacher's chat template leaves out the tools that it may call: remove such rows, or choose a"
                " teacher that uses tools"
            )
        shaped = self.shaped(messages)
        try:
            written, lost = self._written(shaped, tools, **how), self._lost(shaped, tools)
        except Exception as error:  # a template is the model author's program: it may raise anything
            raise UserError(f"the teacher's chat template refuses a prompt: {first_line(error)}") from None
        if lost:
            raise UserError(
                f"the teacher's chat template leaves out {lost}: remove such rows, or choose a teacher that uses tools"
            )
        return written

    def shaped(self, messages: Messages) -> Messages:
        """The conversation as the template takes it."""
        moved = [self._message(message) for message in self._moved(messages)]
        return moved if self.shape.takes_any_order else list(_in_turns(moved))

    def changes(self, messages: Messages) -> set[str]:
        """What had to be done to a conversation, by name (see CHANGES)."""
        moved, shaped = self._moved(messages), self.shaped(messages)
        is_moved = any(message["role"] == "system" and message not in moved for message in messages)
        return {name for name, is_so in ((MOVED, is_moved), (MERGED, len(shaped) < len(moved))) if is_so}

    def takes(self, messages: Messages) -> bool:
        """Whether each answer in the conversation is one that the template takes: some refuse an empty one."""
        return self.shape.takes_empty_answers or all(m["content"] for m in messages if m["role"] == "assistant")

    def _moved(self, messages: Messages) -> Messages:
        """System messages that the template does not take, put before the text of the next user message."""
        moved: Messages = []
        waiting: list[str] = []
        for place, message in enumerate(messages):
            takes = self.shape.takes_later_system if place else self.shape.takes_system
            if message["role"] == "system" and not takes:
                waiting.append(message["content"])
            elif message["role"] == "user" and waiting:
                moved.append({**message, "content": GAP.join([*waiting, message["content"]])})
                waiting = []
            else:
                moved.append(message)
        return [*moved, *([{"role": "user", "content": GAP.join(waiting)}] if waiting else [])]

    def _message(self, message: Message) -> Message:
        """A message without a null where the template wants text, its tool calls as the template wants them."""
        content, calls = message.get("content"), message.get("tool_calls")
        if not calls:
            return message if content is not None else {**message, "content": ""}
        content = content if content and content.strip() else self.shape.call_content
        return {**message, "content": content, "tool_calls": [_call(c, self.shape.call_arguments) for c in calls]}

    def _written(self, messages: Messages, tools: list[Any] | None, **how: Any) -> Any:
        return self.tokenizer.apply_chat_template(messages, tools=tools, return_dict=False, **how, **self._variables)

    def _lost(self, shaped: Messages, tools: list[Any] | None) -> str:
        """A tool call or result that is not in the rendering, in words; empty if there is none.

        Marks are put in the place of names and results, since these may stand in the conversation elsewhere.
        """
        if not any(message["role"] == "tool" or message.get("tool_calls") for message in shaped):
            return ""
        marked, marks = copy.deepcopy(shaped), {}
        for message in marked:
            for call in message.get("tool_calls") or ():
                mark = f"{CALLED}x{len(marks)}x"
                marks[mark], call["function"]["name"] = f"tool calls (here of {call['function']['name']})", mark
            if message["role"] == "tool":
                mark = message["content"] = f"{RESULT}x{len(marks)}x"
                marks[mark] = "the results of tool calls"
        text = self._written(marked, tools, add_generation_prompt=False, tokenize=False)
        return next((what for mark, what in marks.items() if mark not in text), "")

    def _cut(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _is_blank(self, token_ids: list[int]) -> bool:
        return not self.tokenizer.decode(token_ids, skip_special_tokens=True).strip()


def check_has_template(tokenizer: Any) -> None:
    """Raises UserError where the teacher does not know how a conversation is written."""
    if not tokenizer.chat_template:
        raise UserError("the teacher's tokenizer has no chat template; use an instruction-tuned model")


def source(tokenizer: Any) -> str:
    """The template's text; of several templates by name, JSON; empty where there is none."""
    template = tokenizer.chat_template or ""
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def asks_date(tokenizer: Any) -> bool:
    """Whether what the template writes depends on the day."""
    return CLOCK in source(tokenizer)


def _call(call: Message, arguments_as: str) -> Message:
    """A tool call as transformers documents it for templates: {type, function: {name, arguments}}."""
    given = call.get("function") or call
    arguments = given.get("arguments")
    if arguments_as == "text" and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    outer = {key: value for key, value in call.items() if key not in ("function", "name", "arguments")}
    return {"type": "function", **outer, "function": {"name": given["name"], "arguments": arguments}}


def _in_turns(messages: Messages) -> Iterator[Message]:
    """Texts of one role that follow each other as one message."""
    last: Message | None = None
    for message in messages:
        if last is not None and _is_text(last) and _is_text(message) and last["role"] == message["role"]:
            last = {**last, "content": GAP.join([last["content"], message["content"]])}
            continue
        if last is not None:
            yield last
        last = message
    if last is not None:
        yield last


def _is_text(message: Message) -> bool:
    return message.keys() == {"role", "content"} and message["role"] in ("user", "assistant")


def _tried(template: ChatTemplate) -> Shape:
    """What a template takes, by what comes of made-up conversations."""
    system, user, later = _said("system", SYSTEM), _said("user", USER), _said("user", LATER)
    answer, result = _said("assistant", ANSWER), {**_said("tool", RESULT), "tool_call_id": CALL_ID, "name": CALLED}

    def text(*messages: Message, tools: list[Any] | None = None) -> str:
        """The rendering; empty if the template refuses it."""
        try:
            return template._written(list(messages), tools, add_generation_prompt=True, tokenize=False)
        except Exception:  # as in apply: any of them is a refusal
            return ""

    def takes(*messages: Message) -> bool:
        """Whether each message's text is in the rendering."""
        written = text(*messages)
        return bool(written) and all(message["content"] in written for message in messages)

    if not takes(user):  # nothing helps: the first rendering says why
        return Shape()
    shapes = [(how, content) for how in ("object", "text") for content in ("", None)]
    alone = text(user, tools=TOOLS)
    shows_call = (
        (how, content)
        for how, content in shapes
        if _shows_call(text(user, _calling(how, content), result, answer, later, tools=TOOLS), alone)
    )
    arguments, content = next(shows_call, shapes[0])
    return Shape(
        takes_system=takes(system, user) and takes(system, user, answer, later),
        takes_later_system=takes(user, answer, system, later),
        takes_any_order=takes(user, later) and takes(user, answer, _said("assistant", RESULT), later),
        takes_empty_answers=takes(user, _said("assistant", ""), later),
        shows_tools=TOOL in alone or TOOL in text(system, user, tools=TOOLS),
        call_arguments=arguments,
        call_content=content,
    )


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _calling(arguments_as: str, content: str | None) -> Message:
    call = {"id": CALL_ID, "name": CALLED, "arguments": {KEY: VALUE}}
    return {"role": "assistant", "content": content, "tool_calls": [_call(call, arguments_as)]}


def _shows_call(text: str, alone: str) -> bool:
    """Whether a rendering holds the call as JSON or in a form of the template's own: not as Python writes an object,
    not as JSON within JSON, and no null as a word. `alone` is the rendering without the call."""
    is_there = all(mark in text for mark in (CALLED, KEY, VALUE, RESULT))
    is_python, is_twice = f"'{KEY}': " in text, f'\\"{KEY}' in text
    return is_there and not is_python and not is_twice and text.count("None") == alone.count("None")

"""The messages that a row of a source means."""

import json
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from pipeline.config import Source
from pipeline.corpora import BadRowError, Row, utf8
from pipeline.errors import UserError
from pipeline.records import UNCATEGORISED

Message = dict[str, Any]  # role and content, and of OPTIONAL what its role may have and this one has
Messages = list[Message]
ROLES = ("system", "user", "assistant", "tool")
OPTIONAL = {"assistant": ("tool_calls", "reasoning_content"), "tool": ("tool_call_id", "name")}


def load_template(path: str | None) -> Template | None:
    """The Jinja template of a source. Raises UserError where it is missing or malformed."""
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
        return SandboxedEnvironment(undefined=StrictUndefined).from_string(text)
    except OSError:
        raise UserError(f"{path}: no such prompt template") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a prompt template in UTF-8") from None
    except TemplateError as error:
        raise UserError(f"{path}: malformed Jinja template: {error}") from None


def prompt_of(row: Row, source: Source, template: Template | None) -> Messages:
    """The conversation that a row asks the teacher to go on with, up to its last user or tool message.

    Raises BadRowError where there is none.
    """
    messages = [_clean(message) for message in _conversation(row, source, template)]
    while messages and messages[-1]["role"] == "assistant":  # an answer that the corpus has: the teacher gives its own
        messages.pop()
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise BadRowError("no user message to answer at the end of the conversation")
    return messages


def pairs_of(row: Row, source: Source, template: Template | None) -> list[tuple[Messages, Message]]:
    """`(prompt, completion)` of each assistant message to be scored: all that stands before it, and the message.

    One with `weight: 0` or `train: false` is context alone, and so is one before the first user message.
    Raises BadRowError where none is left.
    """
    given = _conversation(row, source, template)
    if template is not None or row.get(source.messages) is None:
        if row.get(source.completion) is None:
            raise BadRowError(f"no answer to be scored: there is nothing in column {source.completion!r}")
        given = [*given, {"role": "assistant", "content": row[source.completion]}]
        _check_messages(given)
    messages = [_clean(message) for message in given]
    scored = [place for place, message in enumerate(given) if _is_scored(message)]
    scored = [place for place in scored if any(message["role"] == "user" for message in messages[:place])]
    if not scored:
        raise BadRowError("no answer to be scored: no assistant message after a user's, or none that is not masked")
    return [(messages[:place], messages[place]) for place in scored]


def first_turn(messages: Messages) -> Messages:
    """A conversation up to its first user message; the whole where there is none."""
    first = next((place for place, message in enumerate(messages) if message["role"] == "user"), len(messages))
    return messages[: first + 1]


def tools_of(row: Row, source: Source) -> list[Any] | None:
    """The tools that a row's teacher may call, None where there are none. Raises BadRowError where they are no list.

    Fields that are null are left out: Parquet gives every tool the fields of all.
    """
    tools = _parsed(row.get(source.tools), f"column {source.tools!r}") or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRowError(f"column {source.tools!r} is no list of tools")
    _check_encodable(tools)
    return tools if isinstance(row.get(source.tools), str) else _without_nulls(tools)


def category_of(row: Row, source: Source) -> str:
    """The row's label, halves of surrogate pairs replaced."""
    return str(row.get(source.category) or UNCATEGORISED).encode(errors="replace").decode()


def licence_of(row: Row, source: Source) -> str | None:
    """The licence that a row names for itself, in a column `licence` or `license`, else that of its source."""
    own = row.get("licence") or row.get("license")
    return utf8(own.strip()) if isinstance(own, str) and own.strip() else source.licence


def _conversation(row: Row, source: Source, template: Template | None) -> Messages:
    """The messages of a row as they stand there, checked, with the source's system message."""
    if template is not None:
        try:
            messages: Any = [{"role": "user", "content": template.render(row)}]
        except Exception as error:  # a template is a program: a filter may raise anything
            raise BadRowError(f"the template can't be filled: {error}") from None
    elif row.get(source.messages) is not None:
        messages = _parsed(row[source.messages], f"column {source.messages!r}", "list of messages")
    elif source.prompt in row:
        messages = [{"role": "user", "content": row[source.prompt]}]
    else:
        raise BadRowError(
            f"no column {source.messages!r} or {source.prompt!r} (the row has: {', '.join(map(str, row))});"
            " name yours in the source's `prompt`"
        )
    _check_messages(messages)
    if source.system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": source.system}, *messages]
    return messages


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadRowError("messages is no list of {role, content}")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadRowError(f"a message's role must be one of {', '.join(ROLES)}")
        role, content = message["role"], message.get("content")
        if content is not None and not isinstance(content, str):
            raise BadRowError(f"{_a(role)} message's content is no text (its type: {type(content).__name__})")
        may_be_empty = message.get("tool_calls") if role == "assistant" else role == "tool" and content is not None
        if not may_be_empty and (content is None or not content.strip()):
            raise BadRowError(f"empty {'answer' if role == 'assistant' else 'prompt'}: {_a(role)} message has no text")
        _check_encodable(content, *(message.get(key) for key in OPTIONAL.get(role, ())))


def _is_scored(message: Message) -> bool:
    is_masked = message.get("weight") == 0 or message.get("train") is False
    return message["role"] == "assistant" and not is_masked


def _clean(message: Message) -> Message:
    """What a template may see of a message: of the optional fields those that are set, tool calls as objects."""
    role = message["role"]
    optional = {key: message[key] for key in OPTIONAL.get(role, ()) if message.get(key)}
    if "tool_calls" in optional:
        optional["tool_calls"] = _tool_calls(optional["tool_calls"])
    return {"role": role, "content": message.get("content"), **optional}


def _tool_calls(value: Any) -> list[Any]:
    """OpenAI's tool calls, their arguments as objects: OpenAI has them as JSON text, templates write them as JSON."""
    calls = _parsed(value, "tool_calls")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRowError("an assistant message's tool_calls is no list of calls")
    parsed = []
    for call in calls:
        function = call.get("function") or call
        given = function.get("arguments") or {}
        arguments = _parsed(given, "the arguments of a tool call")
        if not isinstance(function.get("name"), str) or not isinstance(arguments, dict):
            raise BadRowError("a tool call needs function.name, and function.arguments that is a JSON object")
        if not isinstance(value, str):  # a null in JSON text is meant
            call, function = _without_nulls(call), _without_nulls(function)
            arguments = arguments if isinstance(given, str) else _without_nulls(arguments)
        whole = {**function, "arguments": arguments}
        parsed.append({**call, "function": whole} if "function" in call else whole)
    return parsed


def _parsed(value: Any, what: str, wanted: str = "") -> Any:
    """A value that may stand as JSON text, as in a CSV cell."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (json.JSONDecodeError, RecursionError):
        raise BadRowError(f"{what} is no JSON {wanted}".rstrip()) from None


def _without_nulls(value: Any) -> Any:
    """Without the fields that Parquet gives every row because one has them."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _a(role: str) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"


def _check_encodable(*values: Any) -> None:
    for value in values:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        try:
            if not text.isprintable():
                text.encode()
        except UnicodeEncodeError:
            raise BadRowError("a message is not valid Unicode (half of a surrogate pair)") from None

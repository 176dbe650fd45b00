"""The messages that a row of a source means."""

import json
from typing import Any

from pipeline import corpora, prompt_templates
from pipeline.config import Source
from pipeline.corpora import BadRowError, Row, utf8
from pipeline.prompt_templates import FillError, PromptTemplate, hint, listed
from pipeline.records import UNCATEGORISED

Message = dict[str, Any]  # role and content, and of OPTIONAL what its role may have and this one has
Messages = list[Message]
ROLES = ("system", "user", "assistant", "tool")
OPTIONAL = {"assistant": ("tool_calls", "reasoning_content"), "tool": ("tool_call_id", "name")}
LICENCE = ("licence", "license")  # columns in which a row may name its own
WHOLE_ROW = "row"  # a template's variable with all columns, for those whose names are no variable's: row["the text"]


def load_template(path: str | None) -> PromptTemplate | None:
    """The Jinja template of a source. Raises UserError if it is missing or malformed."""
    return None if path is None else prompt_templates.load(path, "prepare.sources")


def columns_of(source: Source, template: PromptTemplate | None, is_scored: bool) -> set[str] | None:
    """The columns of a source that are read, those of answers only if these are to be scored; None for all."""
    variables = template.variables if template else frozenset()
    if WHOLE_ROW in variables:
        return None
    named = {source.messages, source.prompt, source.tools, source.category, *LICENCE, *variables}
    return named | {source.completion} if is_scored else named


def prompt_of(row: Row, source: Source, template: PromptTemplate | None) -> Messages:
    """The conversation that a row asks the teacher to go on with, up to its last user or tool message.

    Raises BadRowError where there is none.
    """
    messages = [_clean(message) for message in _conversation(row, source, template)]
    while messages and messages[-1]["role"] == "assistant":  # an answer that the corpus has: the teacher gives its own
        messages.pop()
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise BadRowError("no user message to answer at the end of the conversation")
    return messages


def pairs_of(row: Row, source: Source, template: PromptTemplate | None) -> list[tuple[Messages, Message]]:
    """`(prompt, completion)` of each assistant message to be scored: all that stands before it, and the message.

    One with `weight: 0` or `train: false` is context alone, and so is one before the first user message.
    Raises BadRowError where none is left.
    """
    given = _conversation(row, source, template)
    if template is not None or row.get(source.messages) is None:
        if row.get(source.completion) is None:
            raise BadRowError(
                f"no answer to be scored: nothing in column {source.completion!r}"
                + ("" if source.completion in row else f" (the row has: {listed(row)}){hint(source.completion, row)}")
            )
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
    given = row.get(source.tools)
    tools = _parsed(given, f"column {source.tools!r}") or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRowError(f"column {source.tools!r} is not a list of tools")
    _check_encodable(tools)
    return tools if tools is None or isinstance(given, str) else _without_nulls(_as_json(tools))


def category_of(row: Row, source: Source) -> str:
    """The row's label, halves of surrogate pairs replaced; of several, such as tags, all."""
    label = row.get(source.category)
    if isinstance(label, list):
        label = ", ".join(str(each) for each in label if each is not None)
    if isinstance(label, dict):
        label = json.dumps(label, ensure_ascii=False, default=str)
    return UNCATEGORISED if label is None or label == "" else utf8(str(label))


def licence_of(row: Row, source: Source) -> str | None:
    """The licence that a row names for itself, in a column `licence` or `license`, else that of its source."""
    own = next(filter(None, map(row.get, LICENCE)), None)
    return utf8(own.strip()) if isinstance(own, str) and own.strip() else source.licence


def _conversation(row: Row, source: Source, template: PromptTemplate | None) -> Messages:
    """The messages of a row as they stand there, checked, with the source's system message."""
    if template is not None:
        try:
            text = template.fill({WHOLE_ROW: row, **row}, columns=row)
        except FillError as error:
            raise BadRowError(f"the template can't be filled: {error}") from None
        messages: Any = [{"role": "user", "content": text}]
    elif row.get(source.messages) is not None:
        messages = _parsed(row[source.messages], f"column {source.messages!r}", "list of messages")
    elif source.prompt in row:
        messages = [{"role": "user", "content": row[source.prompt]}]
    else:
        raise BadRowError(
            f"no column {source.messages!r} or {source.prompt!r} (the row has: {listed(row)});"
            f" name yours in the source's `prompt`{hint(source.prompt, row)}"
        )
    _check_messages(messages)
    if source.system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": source.system}, *messages]
    return messages


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadRowError("messages is not a list of {role, content}")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadRowError(f"a message's role must be one of {', '.join(ROLES)}")
        role, content = message["role"], message.get("content")
        if content is not None and not isinstance(content, str):
            raise BadRowError(f"{_a(role)} message's content is not text (its type: {type(content).__name__})")
        may_be_empty = message.get("tool_calls") if role == "assistant" else role == "tool" and content is not None
        if not may_be_empty and (content is None or not content.strip()):
            raise BadRowError(f"empty {'answer' if role == 'assistant' else 'prompt'}: {_a(role)} message has no text")
        for key in OPTIONAL.get(role, ()):
            if key != "tool_calls" and not isinstance(message.get(key), str | None):
                raise BadRowError(f"{_a(role)} message's {key} is not text (its type: {type(message[key]).__name__})")
            _check_encodable(message.get(key))
        _check_encodable(content)


def _is_scored(message: Message) -> bool:
    is_masked = message.get("weight") == 0 or message.get("train") is False
    return message["role"] == "assistant" and not is_masked


def _clean(message: Message) -> Message:
    """What a template may see of a message: of the optional fields those that are set, tool calls as objects.

    The content of a call without words is null, whether the source says null, nothing or an empty text.
    """
    role = message["role"]
    optional = {key: message[key] for key in OPTIONAL.get(role, ()) if message.get(key)}
    if "tool_calls" in optional:
        optional["tool_calls"] = _tool_calls(optional["tool_calls"])
    content = message.get("content") or None if "tool_calls" in optional else message.get("content")
    return {"role": role, "content": content, **optional}


def _tool_calls(value: Any) -> list[Any]:
    """OpenAI's tool calls, their arguments as objects: OpenAI has them as JSON text, templates write them as JSON."""
    calls = _parsed(value, "tool_calls") if isinstance(value, str) else _as_json(value)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRowError("an assistant message's tool_calls is not a list of calls")
    parsed = []
    for call in calls:
        function = call.get("function") or call
        if not isinstance(function, dict):
            raise BadRowError("a tool call's function is not an object")
        given = function.get("arguments") or {}
        arguments = _parsed(given, "the arguments of a tool call")
        arguments = {} if arguments is None else arguments
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
        found = corpora.plain(corpora.parsed(value)) if value.strip() else None
    except BadRowError:
        raise BadRowError(f"{what} is not {f'a JSON {wanted}' if wanted else 'JSON'}") from None
    _check_encodable(found)
    return found


def _as_json(value: Any) -> Any:
    """A value that came as no text, such as a struct of Parquet, with what JSON has not, such as a date, as text."""
    return json.loads(json.dumps(value, default=_text_of))


def _text_of(value: Any) -> str:
    if isinstance(value, bytes):
        raise BadRowError("tools or tool calls hold binary data")
    return str(value)


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

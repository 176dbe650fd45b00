"""Messages of any format as OpenAI has them, and values that stand as text where they are lists or objects.

TRL's `maybe_convert_to_chatml` renames ShareGPT's fields, and is used; it leaves ShareGPT's roles, which no chat
template knows. Its `is_conversational` looks at any one of a row's columns and fails for an empty list: not used.
"""

import ast
import json
import re
import warnings
from typing import Any

from pipeline import corpora
from pipeline.corpora import BadRowError
from pipeline.text.prompt_templates import listed

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")
NAMES = {  # of roles, in other formats
    "developer": "system",
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("function", "ipython", "observation", "function_response"), "tool"),
}
TEXT_PARTS = ("text", "input_text", "output_text")
_LIST = re.compile(r"\s*\[?\s*\{")
_TURN = re.compile(r"\n\n(Human|Assistant):")


def canonical(given: Any) -> tuple[list[Message], bool]:
    """A conversation up to its first empty answer, and whether there was one; empty system messages are left out.

    Raises BadRowError for what is not a message.
    """
    messages = []
    for message in map(_message, _listed_messages(given)):
        is_empty = is_blank(message.get("content"))
        if message["role"] == "assistant" and is_empty and not message.get("tool_calls"):
            return messages, True
        if message["role"] != "system" or not is_empty:
            messages.append(message)
    return messages, False


def messages_in(value: Any) -> list[Any] | None:
    """The messages that a value holds: a list of them, also as text, or a single one; None if it is something else."""
    if isinstance(value, str) and _LIST.match(value):
        try:
            value = from_text(value, "")
        except BadRowError:
            return None
    if isinstance(value, dict):
        value = _rows_of(value) or [value]
    if not isinstance(value, list) or not value:
        return None
    return value if all(isinstance(each, dict) and {"role", "from"} & each.keys() for each in value) else None


def role_of(message: Any) -> str:
    """The role of a message as OpenAI names it, or as it stands if OpenAI has none; empty if it is not a message."""
    named = message.get("role") or message.get("from") if isinstance(message, dict) else None
    name = named.strip().lower() if isinstance(named, str) else ""
    return NAMES.get(name, name)


def transcript(value: Any) -> list[Message] | None:
    """The messages of a text in which Human and Assistant take turns, as in Anthropic's files; None if it is none.

    TRL's `extract_prompt` takes for the prompt whatever two such texts begin with, the beginning of the answer too.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("Human:"):
        return None
    _, *parts = _TURN.split(f"\n\n{value.lstrip()}")
    names = {"Human": "user", "Assistant": "assistant"}
    turns = [{"role": names[who], "content": text.strip()} for who, text in zip(parts[::2], parts[1::2], strict=True)]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns  # the cue for an answer


def as_context(messages: Any) -> list[Any]:
    """Messages whose answers are not to be scored: those of a prompt whose answer stands in a column of its own."""
    return [{**each, "weight": 0} if isinstance(each, dict) else each for each in _listed_messages(messages)]


def to_be_answered(messages: list[Any]) -> list[Any]:
    """A conversation without the answers at its end."""
    ends = (n for n in range(len(messages), 0, -1) if role_of(messages[n - 1]) != "assistant")
    return messages[: next(ends, 0)]


def from_text(value: Any, what: str, wanted: str = "") -> Any:
    """A value that may stand as text, as in a CSV cell: as JSON, or as Python writes it, and pandas into a CSV."""
    if not isinstance(value, str):
        return value
    try:
        found = corpora.plain(corpora.parsed(value) if value.strip() else None)
    except BadRowError:
        found = _from_python(value)
        if found is None:
            raise BadRowError(f"{what} is not {f'a JSON {wanted}' if wanted else 'JSON'}") from None
    check_encodable(found)
    return found


def check_encodable(value: Any) -> None:
    """Raises BadRowError for a text with half of a surrogate pair, at any depth."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    try:
        if not text.isprintable():
            text.encode()
    except UnicodeEncodeError:
        raise BadRowError("a message is not valid Unicode (half of a surrogate pair)") from None


def is_blank(value: Any) -> bool:
    """Whether a value is null, or a text without a character to be seen."""
    return value is None or (isinstance(value, str) and not value.strip())


def a(role: str) -> str:
    """The role with its article."""
    return f"an {role}" if role == "assistant" else f"a {role}"


def _listed_messages(given: Any) -> list[Any]:
    messages = _rows_of(given) if isinstance(given, dict) else given
    if isinstance(messages, list) and messages and all(isinstance(each, str) for each in messages):
        return [{"role": ROLES[1 + place % 2], "content": text} for place, text in enumerate(messages)]
    if not isinstance(messages, list) or not messages:
        raise BadRowError("messages is not a list of {role, content}")
    return messages


def _rows_of(columns: dict[str, Any]) -> list[Message] | None:
    """The messages of `{role: [...], content: [...]}`, as `datasets` has a Sequence of objects; None if it is none."""
    lists = [value for value in columns.values() if isinstance(value, list)]
    if not {"role", "from"} & columns.keys() or len(lists) < len(columns) or len({len(each) for each in lists}) > 1:
        return None
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _message(given: Any) -> Message:
    """A message with OpenAI's role, its content as text or as it stands; fields that are null are left out."""
    if not isinstance(given, dict):
        raise BadRowError("messages is not a list of {role, content}")
    message = {key: value for key, value in given.items() if value is not None}
    if {"from", "value"} & message.keys():
        from trl.data_utils import maybe_convert_to_chatml  # which brings transformers with it

        [message] = maybe_convert_to_chatml({"messages": [message]})["messages"]
    role, named = role_of(message), message.get("role")
    if role not in ROLES:
        told = f"is {listed([named])!r}" if isinstance(named, str) else "has none"
        raise BadRowError(f"a message's role must be one of {', '.join((*ROLES, *NAMES))}, and one {told}")
    message |= {"role": role, "content": _text_of(message.get("content"), role)}
    if named == "function_call":
        return {**message, "content": None, "tool_calls": _calls(message["content"])}
    if "function_call" in message and not message.get("tool_calls"):
        message["tool_calls"] = _calls(message["function_call"])
    return message


def _text_of(content: Any, role: str) -> Any:
    """The text of a content that is a list of parts, joined as vLLM joins it; any other content as it stands."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type", "text" if "text" in part else None) if isinstance(part, dict) else None
        if kind not in TEXT_PARTS:
            named = f"of type {listed([kind])}" if isinstance(kind, str) else "without a type"
            raise BadRowError(f"{a(role)} message holds a part {named}: only text is understood")
        if not isinstance(part.get("text"), str):
            raise BadRowError(f"{a(role)} message holds a text part without text")
        texts.append(part["text"])
    return "\n".join(texts)


def _calls(value: Any) -> list[Any]:
    """The calls of ShareGPT's function_call, or of OpenAI's from before there were tools, in their envelopes."""
    given = from_text(value, "a function call")
    calls = given if isinstance(given, list) else [given]
    if not all(isinstance(call, dict) for call in calls):
        raise BadRowError("a function call is not an object with a name and arguments")
    return [call if "function" in call else {"type": "function", "function": call} for call in calls]


def _from_python(text: str) -> Any:
    """A list or object as Python writes it, if JSON could have it; else None."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash that begins nothing
            return corpora.plain(json.loads(json.dumps(ast.literal_eval(text.strip()))))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, BadRowError):
        return None

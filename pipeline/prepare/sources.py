"""The messages that a row of a source means."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import corpora
from pipeline.config import Config, Source
from pipeline.corpora import BadRowError, Row, utf8
from pipeline.errors import UserError
from pipeline.prepare import formats
from pipeline.prepare.formats import SourceSummary, Taken
from pipeline.prepare.messages import a, canonical, check_encodable, from_text
from pipeline.records import UNCATEGORISED
from pipeline.text import prompt_templates
from pipeline.text.prompt_templates import FillError, PromptTemplate, listed

Message = dict[str, Any]  # role and content, and of OPTIONAL what its role may have and this one has
Messages = list[Message]
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
    if template is None and not formats.is_mapped(source):
        named |= formats.columns(is_scored)
    return named | {source.completion} if is_scored else named


def previews(config: Config) -> Iterator[str]:
    """A line for each source on this machine, with what its first row is taken for, and one for its template.

    Raises UserError if a source can't be read, and for a first row at which prepare would stop.
    """
    for source in config.prepare.sources:
        template = load_template(source.template)
        if template is not None:
            yield f"{template.path}: the columns that it uses: {listed(sorted(template.variables))}"
        if source.path is not None or Path(source.dataset or "").is_dir():
            yield _preview(source, template, config)


def _preview(source: Source, template: PromptTemplate | None, config: Config) -> str:
    is_scored = config.generate.mode == "score"
    first = source.model_copy(update={"limit": 1})
    for place, row in corpora.read(first, columns_of(source, template, is_scored)):
        try:
            if isinstance(row, BadRowError):
                raise row
            tally = SourceSummary()
            (pairs_of if is_scored else prompt_of)(row, source, template, tally)
            return f"{place}: {next(tally.told())}"
        except BadRowError as problem:
            if config.prepare.bad_rows == "error":
                raise UserError(f"{place}: {problem} (prepare.bad_rows=skip leaves such rows out)") from None
            return f"{place}: {problem}"
    return f"{source.path or source.dataset}: there is no row in it"


def prompt_of(
    row: Row, source: Source, template: PromptTemplate | None, tally: SourceSummary | None = None
) -> Messages:
    """The conversation that a row asks the teacher to go on with, up to its last user or tool message.

    `tally` is told what the row was taken for. Raises BadRowError where there is no such message.
    """
    taken, given, is_cut = _conversation(row, source, template, is_scored=False)
    messages = [_clean(message) for message in given]
    while messages and messages[-1]["role"] == "assistant":  # an answer that the corpus has: the teacher gives its own
        messages.pop()
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise BadRowError("no user message to answer at the end of the conversation")
    if tally is not None:
        tally.add(taken, is_cut)
    return messages


def pairs_of(
    row: Row, source: Source, template: PromptTemplate | None, tally: SourceSummary | None = None
) -> list[tuple[Messages, Message]]:
    """`(prompt, completion)` of each assistant message to be scored: all that stands before it, and the message.

    One with `weight: 0` or `train: false` is context alone, and so is one before the first user message.
    `tally` is told what the row was taken for. Raises BadRowError where no message is left to be scored.
    """
    taken, given, is_cut = _conversation(row, source, template, is_scored=True)
    messages = [_clean(message) for message in given]
    scored = [place for place, message in enumerate(given) if _is_scored(message)]
    scored = [place for place in scored if any(message["role"] == "user" for message in messages[:place])]
    if not scored:
        why = "its answer is empty" if is_cut else "no assistant message after a user's, or none that is not masked"
        raise BadRowError(f"no answer to be scored: {why}")
    if tally is not None:
        tally.add(taken, is_cut)
    return [(messages[:place], messages[place]) for place in scored]


def first_turn(messages: Messages) -> Messages:
    """A conversation up to its first user message; the whole where there is none."""
    first = next((place for place, message in enumerate(messages) if message["role"] == "user"), len(messages))
    return messages[: first + 1]


def tools_of(row: Row, source: Source) -> list[Any] | None:
    """The tools that a row's teacher may call, None where there are none. Raises BadRowError where they are no list.

    Fields that are null are left out: Parquet gives every tool the fields of all.
    """
    where, given = formats.tools_of(row, source)
    tools = from_text(given, where) or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRowError(f"{where} is not a list of tools")
    check_encodable(tools)
    if tools is not None and not isinstance(given, str):
        tools = _without_nulls(_as_json(tools))
    return tools and [_in_envelope(tool) for tool in tools]


def _in_envelope(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as templates read it: ShareGPT, and OpenAI's older files, have its function alone."""
    is_bare = isinstance(tool.get("name"), str) and not {"type", "function"} & tool.keys()
    return {"type": "function", "function": tool} if is_bare else tool


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


def _conversation(
    row: Row, source: Source, template: PromptTemplate | None, is_scored: bool
) -> tuple[Taken, Messages, bool]:
    """What a row was taken for, its messages, checked, a system message before them, and whether they were cut."""
    taken = formats.take(row, source, is_scored) if template is None else _filled(row, source, template, is_scored)
    messages, is_cut = canonical(taken.messages)
    if not messages:
        raise BadRowError("the conversation begins with an empty answer" if is_cut else "no message has a text")
    _check_messages(messages)
    if messages[0]["role"] != "system":
        own = formats.system_of(row) if template is None and not formats.is_mapped(source) else None
        if system := own or source.system:
            check_encodable(system)
            messages = [{"role": "system", "content": system}, *messages]
    return taken, messages, is_cut


def _filled(row: Row, source: Source, template: PromptTemplate, is_scored: bool) -> Taken:
    """The template's text, and the answer to be scored."""
    try:
        text = template.fill({WHOLE_ROW: row, **row}, columns=row)
    except FillError as error:
        raise BadRowError(f"the template can't be filled: {error}") from None
    asked = [{"role": "user", "content": text}]
    answer = formats.answer_of(row, (source.completion,))[1] if is_scored else []
    return Taken("by the source's template", (Path(template.path).name,), [*asked, *answer])


def _check_messages(messages: Messages) -> None:
    for message in messages:
        role, content = message["role"], message.get("content")
        if content is not None and not isinstance(content, str):
            raise BadRowError(f"{a(role)} message's content is not text (its type: {type(content).__name__})")
        may_be_empty = message.get("tool_calls") if role == "assistant" else role == "tool" and content is not None
        if not may_be_empty and (content is None or not content.strip()):
            raise BadRowError(f"empty prompt: {a(role)} message has no text")
        for key in OPTIONAL.get(role, ()):
            if key != "tool_calls" and not isinstance(message.get(key), str | None):
                raise BadRowError(f"{a(role)} message's {key} is not text (its type: {type(message[key]).__name__})")
            check_encodable(message.get(key))
        check_encodable(content)


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
    calls = from_text(value, "tool_calls") if isinstance(value, str) else _as_json(value)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRowError("an assistant message's tool_calls is not a list of calls")
    parsed = []
    for call in calls:
        function = call.get("function") or call
        if not isinstance(function, dict):
            raise BadRowError("a tool call's function is not an object")
        given = function.get("arguments") or {}
        arguments = from_text(given, "the arguments of a tool call")
        arguments = {} if arguments is None else arguments
        if not isinstance(function.get("name"), str) or not isinstance(arguments, dict):
            raise BadRowError("a tool call needs function.name, and function.arguments that is a JSON object")
        if not isinstance(value, str):  # a null in JSON text is meant
            call, function = _without_nulls(call), _without_nulls(function)
            arguments = arguments if isinstance(given, str) else _without_nulls(arguments)
        whole = {**function, "arguments": arguments}
        parsed.append({**call, "function": whole} if "function" in call else whole)
    return parsed


def _as_json(value: Any) -> Any:
    """A value that is not text, such as a struct of Parquet, with what JSON has not, such as a date, as text."""
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

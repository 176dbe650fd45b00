"""What a row is taken for: told by its columns, each row by itself, unless its source maps them."""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.config import Source
from pipeline.console import counted
from pipeline.corpora import UNREAD, BadRowError, Row
from pipeline.prepare.messages import as_context, from_text, is_blank, messages_in, role_of, to_be_answered, transcript
from pipeline.text.prompt_templates import hint, listed

CHATS = {"messages": "OpenAI messages", "conversations": "ShareGPT", "conversation": "ShareGPT"}
ANSWERS = ("completion", "response", "output", "answer", "solution")
QUESTIONS = {  # a prompt's column: the format's name, and where its answer is likelier to stand than elsewhere
    "prompt": ("prompts", ()),
    "instruction": ("Alpaca", ("output", "response")),
    "question": ("questions and answers", ("answer", "response")),
    "problem": ("questions and answers", ("solution", "answer")),
    "query": ("questions and answers", ("answer", "response")),
}
CONTEXTS = ("input", "context")  # what an instruction or a question is about
CHOICES = ("choices", "options")  # without which a question can't be answered
SYSTEMS = ("system", "system_prompt")
OTHERS = ("history", "chosen", "turns", "body", "functions")
UNDERSTOOD = "messages, conversations, prompt, instruction, question, chosen, turns and OpenAI's batch files"
TYPES = {str: "text", bool: "true or false", int: "number", float: "number", list: "list", dict: "object"}
AS_MAPPED = "by the columns that the source names"


class Taken(NamedTuple):
    """What a row was taken for, and its messages as they stand there."""

    what: str  # `of ShareGPT`, as in `200 rows of ShareGPT`
    columns: tuple[str, ...]
    messages: Any
    has_later_turns: bool = False  # which wait for an answer that the row has not


class SourceSummary:
    """What the rows of a source were taken for, for people."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._columns: dict[str, dict[str, None]] = {}  # ordered sets
        self._later_turns, self._cut, self._prompts, self._drawn = 0, 0, 0, 0

    def add(self, taken: Taken, is_cut: bool) -> None:
        """Count a row that gave a prompt; `is_cut` says that its conversation ended before an empty answer."""
        self._rows[taken.what] = self._rows.get(taken.what, 0) + 1
        self._columns.setdefault(taken.what, {}).update(dict.fromkeys(taken.columns))
        self._later_turns += taken.has_later_turns
        self._cut += is_cut

    def draw(self, is_taken: bool) -> bool:
        """Count a prompt, and whether it is in the share of its source that is taken, which is returned."""
        self._prompts += 1
        self._drawn += is_taken
        return is_taken

    def told(self) -> Iterator[str]:
        """`200 rows of ShareGPT (conversations)`, and a line for each thing that was left out."""
        if self._rows:
            named = {what: listed(columns) for what, columns in self._columns.items()}
            yield ", ".join(f"{counted(num, 'row')} {what} ({named[what]})" for what, num in self._rows.items())
        if self._drawn < self._prompts:
            yield f"{self._drawn} of its {counted(self._prompts, 'prompt')} are in the share that `weight` takes"
        if self._cut:
            yield f"{counted(self._cut, 'conversation')} cut before an empty answer"
        if self._later_turns:
            num = counted(self._later_turns, "row")
            yield f"{num} with later turns, which need the teacher's answers before them: the first turn alone is asked"


def is_mapped(source: Source) -> bool:
    """Whether the source itself names the column of the prompt, or of the conversation."""
    return source.messages != "messages" or source.prompt != "prompt"


def columns(is_scored: bool) -> set[str]:
    """The columns that tell formats, and that rows are made of; those of answers only if they are to be scored."""
    names = {*CHATS, *QUESTIONS, *CONTEXTS, *CHOICES, *SYSTEMS, *OTHERS}
    return names | {*ANSWERS, "preferred_output"} if is_scored else names


def take(row: Row, source: Source, is_scored: bool) -> Taken:
    """What a row is taken for, with its answers if they are to be scored.

    Raises BadRowError if there is no prompt in it, or no answer that could be scored.
    """
    if is_mapped(source):
        return _mapped(row, source, is_scored)
    answers = (source.completion,) if is_scored and source.completion != "completion" else ()
    for format_of in (_openai_file, _chat, _whole_pair, _question, _turns):
        if (taken := format_of(row, is_scored, answers)) is not None:
            return taken
    if (empty := next((name for name in (*QUESTIONS, *CHATS) if name in row), None)) is not None:
        raise BadRowError(f"empty prompt: there is nothing in column {empty!r}")
    raise BadRowError(_not_understood(row, source))


def answer_of(row: Row, names: Sequence[str]) -> tuple[str, list[Any]]:
    """`(column, messages)` of an answer: the first of the columns that has one. Raises BadRowError if none has."""
    name = next((name for name in names if _is_there(row, name)), None)
    if name is None:
        where = f"column {names[0]!r}" if len(names) == 1 else f"any of the columns {', '.join(names)}"
        meant = "" if names[0] in row else hint(names[0], row)
        raise BadRowError(f"no answer to be scored: there is nothing in {where} (the row has: {found_in(row)}){meant}")
    return name, messages_in(row[name]) or [{"role": "assistant", "content": row[name]}]


def tools_of(row: Row, source: Source) -> tuple[str, Any]:
    """Where the tools of a row stand, and what stands there; None if there are none."""
    if not _is_there(row, source.tools) and not is_mapped(source):
        if _is_there(row, "functions"):
            return "column 'functions'", row["functions"]
        for outer in ("body", "input"):
            inner = _object(row, outer)
            for name in ("tools", "functions"):
                if _is_there(inner, "messages") and _is_there(inner, name):
                    return f"{outer}.{name}", inner[name]
    return f"column {source.tools!r}", row.get(source.tools)


def system_of(row: Row) -> str | None:
    """The system message that a column of a row holds. Raises BadRowError if it is not text."""
    name = next((name for name in SYSTEMS if _is_there(row, name)), None)
    return None if name is None else _text(row, name)


def found_in(row: Row) -> str:
    """The columns of a row with their types, for an error."""
    return listed(f"{str(name)[:30]}{_type_of(value)}" for name, value in row.items())


def _type_of(value: Any) -> str:
    if value is UNREAD:
        return ""
    return f" ({'null' if value is None else TYPES.get(type(value), type(value).__name__)})"


def _not_understood(row: Row, source: Source) -> str:
    """What the row has, what is understood, and the line that maps the column that is likeliest to be the prompt."""
    texts = {str(name): value for name, value in row.items() if isinstance(value, str) and value.strip()}
    near = [name for known in QUESTIONS for name in difflib.get_close_matches(known, texts, n=1)]
    likeliest = next(iter([*near, *sorted(texts, key=lambda name: -len(texts[name]))]), "COLUMN")
    origin = f"path: {_as_yaml(source.path)}" if source.path else f"dataset: {_as_yaml(source.dataset or '')}"
    return (
        f"no prompt is found in it (it has: {found_in(row)}); understood are {UNDERSTOOD}. Name the column that holds"
        f" yours: prepare.sources=[{{{origin}, prompt: {_as_yaml(likeliest)}}}]; or write a `template` of several"
    )


def _as_yaml(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z/.][\w./-]*", text) else json.dumps(text)


def _is_there(row: Row, name: str) -> bool:
    value = row.get(name)
    return value is not UNREAD and not is_blank(value)


def _object(row: Row, name: str) -> Row:
    """What stands in a column that holds objects; nothing if it holds something else."""
    value = row.get(name)
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = from_text(value, "")
        except BadRowError:
            return {}
    return value if isinstance(value, dict) else {}


def _text(row: Row, name: str) -> str:
    if not isinstance(row[name], str):
        raise BadRowError(f"column {name!r} is not text{_type_of(row[name])}: a `template` can say how it reads")
    return row[name]


def _mapped(row: Row, source: Source, is_scored: bool) -> Taken:
    """As the source says: its conversation, or its prompt with the completion."""
    is_prompt_alone = source.messages == "messages" and _is_there(row, source.prompt)
    if _is_there(row, source.messages) and not is_prompt_alone:
        return _conversation(row, AS_MAPPED, source.messages)
    if source.prompt not in row:
        raise BadRowError(
            f"no column {source.messages!r} or {source.prompt!r}, which the source names in `messages` and `prompt`"
            f" (the row has: {found_in(row)}){hint(source.prompt, row)}"
        )
    asked = messages_in(row[source.prompt]) or [{"role": "user", "content": row[source.prompt]}]
    if not is_scored:
        return Taken(AS_MAPPED, (source.prompt,), asked)
    name, answer = answer_of(row, (source.completion,))
    return Taken(AS_MAPPED, (source.prompt, name), [*as_context(asked), *answer])


def _openai_file(row: Row, is_scored: bool, answers: tuple[str, ...]) -> Taken | None:
    """A request of a batch file, or a line of a file for preference fine-tuning."""
    body, given = _object(row, "body"), _object(row, "input")
    if _is_there(body, "messages"):
        return _answered(row, "of OpenAI batch requests", ("body.messages",), body["messages"], answers)
    if _is_there(given, "messages"):
        names = answers or (("preferred_output",) if is_scored else ())
        return _answered(row, "of OpenAI preference pairs", ("input.messages",), given["messages"], names)
    return None


def _chat(row: Row, is_scored: bool, answers: tuple[str, ...]) -> Taken | None:
    name = next((name for name in CHATS if _is_there(row, name)), None)
    if name is None:
        return None
    taken = _conversation(row, f"of {CHATS[name]}", name)
    if is_scored and not answers and _object(row, "chosen"):  # LLaMA-Factory's preference pairs
        answers = ("chosen",)
    return _answered(row, *taken[:3], answers)


def _conversation(row: Row, what: str, name: str) -> Taken:
    return Taken(what, (name,), from_text(row[name], f"column {name!r}", "list of messages"))


def _answered(row: Row, what: str, read: tuple[str, ...], asked: Any, answers: tuple[str, ...]) -> Taken:
    """A conversation; with the answer that stands in another column, if one is named, and then no other is scored."""
    if not answers:
        return Taken(what, read, asked)
    name, answer = answer_of(row, answers)
    return Taken(what, (*read, name), [*to_be_answered(as_context(asked)), *answer])


def _whole_pair(row: Row, is_scored: bool, answers: tuple[str, ...]) -> Taken | None:
    """The better of two conversations; where `chosen` is an answer alone, another column is the prompt."""
    chosen = transcript(row.get("chosen")) or messages_in(row.get("chosen"))
    if chosen is None or not any(role_of(each) == "user" for each in chosen):
        return None
    before = messages_in(row.get("prompt")) or []
    if chosen[: len(before)] != before:
        return _answered(row, "of preference pairs", ("prompt", "chosen"), [*as_context(before), *chosen], answers)
    return _answered(row, "of preference pairs", ("chosen",), chosen, answers)


def _question(row: Row, is_scored: bool, answers: tuple[str, ...]) -> Taken | None:
    name = next((name for name in QUESTIONS if _is_there(row, name)), None)
    if name is None or (name == "prompt" and _are_turns(row[name])):
        return None
    what, likelier = QUESTIONS[name]
    is_pair = _is_there(row, "chosen")
    asked = messages_in(row[name]) or (transcript(row[name]) if is_pair else None)
    names = answers or (*(("chosen",) if is_pair else ()), *dict.fromkeys((*likelier, *ANSWERS)))
    what = f"of {'preference pairs' if is_pair else what if asked is None else 'conversational prompts'}"
    if asked is not None:
        return _answered(row, what, (name,), asked, names if is_scored else ())
    asked, read = _asked(row, name)
    if not is_scored:
        return Taken(what, read, asked)
    found, answer = answer_of(row, names)
    return Taken(what, (*read, found), [*asked, *answer])


def _asked(row: Row, name: str) -> tuple[list[Any], tuple[str, ...]]:
    """`(messages, columns)` of a question with what it is about, and of Alpaca with what was said before."""
    if name == "prompt":
        return [{"role": "user", "content": row[name]}], (name,)
    if (choices := next((each for each in CHOICES if _is_there(row, each)), None)) is not None:
        raise BadRowError(f"column {choices!r} belongs to the question: write a `template` that lists what is in it")
    about = next((each for each in CONTEXTS if _is_there(row, each)), None)
    read = (name,) if about is None else (name, about)
    asked = {"role": "user", "content": "\n\n".join(_text(row, each) for each in read)}
    if name == "instruction" and _is_there(row, "history"):
        return [*_history(row["history"]), asked], (*read, "history")
    return [asked], read


def _history(value: Any) -> list[Any]:
    """The messages of earlier questions with their answers."""
    pairs = from_text(value, "column 'history'") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRowError("column 'history' is not a list of pairs, each a question and its answer")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _turns(row: Row, is_scored: bool, answers: tuple[str, ...]) -> Taken | None:
    """The first of several questions, such as MT-bench's: the later ones follow answers that are not there."""
    name = next((name for name in ("turns", "prompt") if _is_there(row, name)), None)
    if name is None:
        return None
    turns = from_text(row[name], f"column {name!r}", "list of texts")
    if not _are_turns(turns):
        return _conversation(row, "of turns", name)
    asked = [{"role": "user", "content": turns[0]}]
    taken = _answered(row, "of turns", (name,), asked, (answers or ANSWERS) if is_scored else ())
    return taken._replace(has_later_turns=len(turns) > 1)

"""What the judge is asked, and how its verdict is read: two answers side by side, or one by itself."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import config
from pipeline.errors import UserError
from pipeline.run.files import text_hash
from pipeline.text import prompt_templates
from pipeline.text.prompt_templates import FillError, PromptTemplate

Kind = Literal["pairwise", "single"]
Choice = Literal["A", "B", "tie"] | float
REMINDER = "Your reply did not end with the line that was asked for. Reply with that line alone, written as shown."
MARKS = r"[*_`#\s]*"  # of Markdown, which chat models like to put around such a line
LINES: dict[Kind, re.Pattern[str]] = {
    "pairwise": re.compile(rf"{MARKS}verdict:{MARKS}\[*(A|B|tie)\]*\.?{MARKS}", re.IGNORECASE),
    "single": re.compile(rf"{MARKS}grade:{MARKS}\[*(\d+(?:\.\d+)?)\]*(?:\s*/\s*10)?\.?{MARKS}", re.IGNORECASE),
}


@dataclass(frozen=True)
class JudgedAnswer:
    """An arm's answer to a turn, and its conversation before: pairs of question and answer."""

    item_id: str
    category: str
    turn: int
    system: str | None
    question: str
    reference: str | None  # a correct answer, where the item has one
    history: tuple[tuple[str, str], ...]
    answer: str
    tools: str | None = None  # JSON list of those that could be called


@dataclass(frozen=True)
class Pair:
    """Two answers to one turn; in order 0 `one` is A, in order 1 `other` is."""

    name: str  # what is compared
    one: JudgedAnswer
    other: JudgedAnswer


@dataclass(frozen=True)
class JudgeRequest:
    """One request to the judge."""

    kind: Kind
    text: str
    key: str  # the same for what is the same to the judge: its verdict is paid for once
    about: dict[str, Any]  # for people who read the verdicts


class Asker:
    """Makes questions with the templates of `settings`. Raises UserError where one is missing or malformed."""

    def __init__(self, settings: config.Grader) -> None:
        self._settings = settings
        self._templates = {kind: _template(settings, kind) for kind in settings.kinds}

    def pairwise(self, pair: Pair, order: int) -> JudgeRequest:
        first, second = (pair.one, pair.other) if order == 0 else (pair.other, pair.one)
        about = {"compared": pair.name, "item_id": pair.one.item_id, "turn": pair.one.turn, "order": order}
        return self._question("pairwise", about, pair.one, first=first, second=second)

    def single(self, arm: str, reply: JudgedAnswer) -> JudgeRequest:
        about = {"graded": arm, "item_id": reply.item_id, "turn": reply.turn}
        return self._question("single", about, reply, given=reply)

    def _question(self, kind: Kind, about: dict[str, Any], asked: JudgedAnswer, **shown: JudgedAnswer) -> JudgeRequest:
        try:
            known = {name: getattr(asked, name) for name in ("system", "tools", "question", "reference")}
            text = self._templates[kind].fill({**known, **shown})
        except FillError as error:
            raise UserError(f"{_path(self._settings, kind)}: {error} ({self._settings.place}.templates)") from None
        # the text holds the template, the question, the answers and their order
        key = text_hash(json.dumps([kind, body(self._settings, [text])], sort_keys=True))
        return JudgeRequest(kind, text, key, about)


def body(settings: config.Grader, texts: list[str]) -> dict[str, Any]:
    """A request: the user's texts and the judge's in turn, the user's first."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    fields = {"temperature": 0, "max_tokens": settings.max_tokens, **settings.request}
    fields = {name: value for name, value in fields.items() if value is not None}
    return {"model": settings.model, "messages": messages, **fields}


def request_hash(settings: config.Grader) -> str:
    """Of what all requests of a judge have in common: its model, and how it is asked."""
    return text_hash(json.dumps(body(settings, []), sort_keys=True))


def read(kind: Kind, reply: str) -> Choice | None:
    """The verdict, where the last line is one and no other line says another; else None: it is never guessed."""
    lines = [line.strip() for line in reply.rpartition("</think>")[2].splitlines() if line.strip()]
    found = [LINES[kind].fullmatch(line) for line in lines]
    said = {match[1].lower() for match in found if match}
    if not found or not found[-1] or len(said) != 1:
        return None
    [verdict] = said
    if kind == "single":
        return float(verdict) if 1 <= float(verdict) <= 10 else None
    return {"a": "A", "b": "B", "tie": "tie"}[verdict]  # pyright: ignore[reportReturnType]


def template_hashes(settings: config.Grader) -> dict[str, str]:
    """Of each template's text. Raises UserError where one is missing."""
    return {kind: text_hash(_template(settings, kind).text) for kind in settings.kinds}


def _template(settings: config.Grader, kind: Kind) -> PromptTemplate:
    setting = f"{settings.place}.templates"
    return prompt_templates.load(_path(settings, kind), setting, trim_blocks=True, lstrip_blocks=True)


def _path(settings: config.Grader, kind: Kind) -> Path:
    return Path(settings.templates) / f"{kind}.jinja"

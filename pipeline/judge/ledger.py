"""The judge's verdicts on disk, one JSON object a line: what was paid for is not asked again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import config
from pipeline.console import say
from pipeline.judge.questions import Choice, JudgeRequest, Kind, request_hash
from pipeline.run.files import json_lines, user_disk_errors


class JudgeVerdict(BaseModel):
    """What came of a question; `choice` is null where no verdict could be read."""

    model_config = ConfigDict(frozen=True)
    key: str
    kind: Kind
    choice: Choice | None
    tries: int  # replies that were read; 0: the server refused the question
    prompt_tokens: int  # of all tries
    completion_tokens: int
    reply: str  # the last, or why it was refused
    about: dict[str, Any]
    model: str | None = None  # that was asked; null in lines of earlier versions, which count for no judge
    request: str | None = None  # hash of what each of its requests holds besides the messages


class Tokens(NamedTuple):
    """What verdicts took, all tries counted."""

    prompt: int = 0
    completion: int = 0

    def more(self, verdict: JudgeVerdict) -> "Tokens":
        return Tokens(self.prompt + verdict.prompt_tokens, self.completion + verdict.completion_tokens)


class Ledger:
    """The verdicts of one file, by question. A line that a kill cut short is passed over, and its question asked again.

    Lines are added and never altered. Several judges' may stand in one file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._verdicts: dict[str, JudgeVerdict] = {}
        self._by_key: dict[str, Tokens] = {}
        self._by_model: dict[str | None, Tokens] = {}
        self._requests: set[str | None] = set()  # those that were answered
        num_unreadable = 0
        for line in json_lines(path) if path.is_file() else ():
            try:
                self._take(JudgeVerdict.model_validate_json(line))
            except ValidationError:
                num_unreadable += bool(line)
        if num_unreadable:
            say(f"{path}: {num_unreadable} lines were cut short by a kill; their questions are asked again")
        self._is_torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")

    def has_answers(self, settings: config.Grader) -> bool:
        """Whether this judge has answered such requests."""
        return request_hash(settings) in self._requests

    def tokens(self, model: str | None) -> Tokens:
        """Of all of a judge's verdicts."""
        return self._by_model.get(model, Tokens())

    def tokens_on(self, questions: Iterable[JudgeRequest]) -> Tokens:
        """Of the verdicts on these questions, each counted once."""
        of_each = [self._by_key.get(key, Tokens()) for key in {question.key for question in questions}]
        return Tokens(sum(each.prompt for each in of_each), sum(each.completion for each in of_each))

    def add(self, verdict: JudgeVerdict) -> None:
        """Append and flush. Raises UserError where the disk is full."""
        with user_disk_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write("\n" * self._is_torn + verdict.model_dump_json() + "\n")
        self._is_torn = False
        self._take(verdict)

    def missing(self, questions: Iterable[JudgeRequest], tries: int) -> list[JudgeRequest]:
        """The questions still to be asked, each once; one without a verdict counts as asked after so many tries."""
        wanted = {question.key: question for question in questions}
        return [question for key, question in wanted.items() if not self._is_settled(key, tries)]

    def num_refused(self, questions: Iterable[JudgeRequest]) -> int:
        return sum(not self._verdicts[question.key].tries for question in questions)

    def choice(self, question: JudgeRequest) -> Choice | None:
        return self._verdicts[question.key].choice

    def _is_settled(self, key: str, tries: int) -> bool:
        verdict = self._verdicts.get(key)
        return verdict is not None and (verdict.choice is not None or verdict.tries >= tries)

    def _take(self, verdict: JudgeVerdict) -> None:
        self._verdicts[verdict.key] = verdict
        self._by_key[verdict.key] = self._by_key.get(verdict.key, Tokens()).more(verdict)
        self._by_model[verdict.model] = self.tokens(verdict.model).more(verdict)
        if verdict.tries:
            self._requests.add(verdict.request)

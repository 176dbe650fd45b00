"""The judge over HTTP: an OpenAI-compatible chat endpoint, asked by a bounded number of workers."""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, Field, ValidationError

from pipeline import config
from pipeline.errors import UserError
from pipeline.judge.ledger import JudgeVerdict
from pipeline.judge.questions import REMINDER, JudgeRequest, body, read, request_hash
from pipeline.run.files import one_line

ATTEMPTS = 5  # at one reply, of a server that answers others
CONNECT_S = 10.0
NOT_MEANT = 16  # characters: a shorter key is a word that a reply may hold
BUSY = (408, 429, 502, 503, 504)  # says nothing against the request
UNFIT = (400, 413, 422)  # this question is refused: too long, or a content filter's


class _Message(BaseModel):
    content: str | None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = _Usage()


@dataclass(frozen=True)
class _Reply:
    text: str
    prompt_tokens: int
    completion_tokens: int


class _Refused(Exception):  # noqa: N818 - no fault: one question less
    """The server refuses a question."""


class _AgainError(Exception):
    """A request that may be answered if it is sent again."""

    def __init__(self, reason: str, is_requests: bool, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.is_requests, self.pause_s = is_requests, pause_s


class Client:
    """Asks the judge of `settings`. `first_pause_s` doubles with each failure, up to `longest_pause_s`."""

    def __init__(self, settings: config.Grader, first_pause_s: float = 0.5, longest_pause_s: float = 30.0) -> None:
        self._settings, self._pauses_s = settings, (first_pause_s, longest_pause_s)
        self.key = os.environ.get(settings.key_variable, "")
        if not self.key.isascii() or any(c.isspace() or not c.isprintable() for c in self.key):
            raise UserError(
                f"{settings.key_variable}: a key has printable ASCII characters and no space or line end in it"
            )
        url = (settings.url or "").rstrip("/")
        self.base = f"{url}{'' if urlsplit(url).path else '/v1'}"
        self._url = f"{self.base}/chat/completions"
        self._answered_s = 0.0
        self._is_proved = False

    def ask(self, questions: list[JudgeRequest], is_proved: bool, take: Callable[[JudgeVerdict], None]) -> None:
        """Give `take` each verdict as it comes. Until a question was answered (`is_proved`) a refusal is an error.

        Raises UserError where the server refuses the key or all questions, or none is answered within `patience_s`; and
        what `take` raises.
        """
        self._is_proved, self._answered_s = is_proved, time.monotonic()
        try:
            asyncio.run(self._ask(questions, take))
        except ExceptionGroup as group:
            of_user, others = group.split(UserError)
            if of_user is None or others is not None:
                raise
            raise _first(of_user) from None

    async def _ask(self, questions: list[JudgeRequest], take: Callable[[JudgeVerdict], None]) -> None:
        waiting = sorted(questions, key=lambda q: len(q.text))  # the shortest can't be too long
        async with self._http() as http:
            if waiting and not self._is_proved:
                take(await self._verdict(http, waiting.pop(0)))
            source = iter(waiting)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._settings.concurrency, len(waiting))):
                    group.create_task(self._work(http, source, take))

    async def _work(
        self, http: httpx.AsyncClient, source: Iterator[JudgeRequest], take: Callable[[JudgeVerdict], None]
    ) -> None:
        for question in source:
            take(await self._verdict(http, question))

    async def _verdict(self, http: httpx.AsyncClient, question: JudgeRequest) -> JudgeVerdict:
        """The judge's verdict; what can't be read is asked for again, with the reply and a reminder before it."""
        texts, given, choice, last = [question.text], [], None, ""
        while choice is None and len(given) <= self._settings.retries:
            try:
                reply = await self._reply(http, body(self._settings, texts), question)
            except _Refused as refusal:
                last = str(refusal)
                break
            given.append(reply)
            last = reply.text
            choice = read(question.kind, reply.text)
            if reply.text.strip():
                texts = [question.text, reply.text, REMINDER]
        return JudgeVerdict(
            key=question.key,
            kind=question.kind,
            choice=choice,
            tries=len(given),
            prompt_tokens=sum(reply.prompt_tokens for reply in given),
            completion_tokens=sum(reply.completion_tokens for reply in given),
            reply=last,
            about=question.about,
            model=self._settings.model,
            request=request_hash(self._settings),
        )

    async def _reply(self, http: httpx.AsyncClient, request: dict[str, Any], question: JudgeRequest) -> _Reply:
        """A reply, asked for with growing pauses. Raises _Refused, and UserError where there is no use in going on."""
        failures = of_request = 0
        while True:
            try:
                reply = await self._post(http, request, question)
                self._answered_s, self._is_proved = time.monotonic(), True
                return reply
            except _AgainError as failure:
                failures += 1
                of_request += failure.is_requests
                silent_s = time.monotonic() - self._answered_s
                if of_request >= ATTEMPTS or silent_s > self._settings.patience_s:
                    raise UserError(
                        f"{self._url}: the judge does not answer ({failure}; tried {failures} times): check"
                        f" {self._settings.place}.url and its server, then run the same command again: its verdicts"
                        " are kept"
                    ) from None
                first_s, longest_s = self._pauses_s
                pause_s = min(longest_s, first_s * 2 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)  # noqa: S311
                await asyncio.sleep(min(self._settings.patience_s, max(failure.pause_s, pause_s)))

    async def _post(self, http: httpx.AsyncClient, request: dict[str, Any], question: JudgeRequest) -> _Reply:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                reply = await http.post(self._url, json=request)
        except TimeoutError:
            raise _AgainError(f"no reply within {self._settings.timeout_s:g} s", is_requests=True) from None
        except httpx.HTTPError as error:
            raise _AgainError(f"no connection: {type(error).__name__}", is_requests=False) from None
        text, status = self._without_key(reply.text), reply.status_code
        if status == httpx.codes.OK:
            return _completion(text, request)
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise UserError(
                f"{self._url}: refuses the key (HTTP {status}); put it into the environment as"
                f" {self._settings.key_variable} ({self._settings.place}.key_variable)"
            )
        if status in BUSY or reply.is_server_error:
            raise _AgainError(f"HTTP {status}", status not in BUSY, _retry_after_s(reply))
        if status in UNFIT and self._is_proved:
            raise _Refused(f"(refused with HTTP {status}: {_message(text)})")
        raise UserError(
            f"{self._url}: refuses {question.about} with HTTP {status}: {_message(text)}; see"
            f" {self._settings.place}.url, model and request"
        )

    def _without_key(self, text: str) -> str:
        """Some servers repeat a key in their messages."""
        return text.replace(self.key, "(the key)") if len(self.key) >= NOT_MEANT else text

    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=httpx.Timeout(None, connect=min(CONNECT_S, self._settings.timeout_s)),
            limits=httpx.Limits(max_connections=None),
            mounts={f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")},  # not through a proxy
        )


def _first(group: ExceptionGroup[UserError]) -> UserError:
    """The first error of the workers: the others mostly say the same."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


def estimated_tokens(text: str) -> int:
    """About as many as a tokenizer makes of it: a quarter of its bytes."""
    return len(text.encode()) // 4 + 1


def _completion(text: str, request: dict[str, Any]) -> _Reply:
    """Raises _AgainError if it is not a chat completion. Tokens are estimated if the server does not give them."""
    try:
        completion = _Completion.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise _AgainError(f"no chat completion ({where}: {first['msg'].lower()})", is_requests=True) from None
    content, usage = completion.choices[0].message.content or "", completion.usage or _Usage()
    sent, given = usage.prompt_tokens, usage.completion_tokens
    if sent is None:
        sent = sum(estimated_tokens(message["content"]) for message in request["messages"])
    return _Reply(content, sent, estimated_tokens(content) if given is None else given)


def _message(text: str) -> str:
    """The server's own words, in one line."""
    return one_line(text) or "no reason given"


def _retry_after_s(reply: httpx.Response) -> float:
    """Retry-After in seconds (RFC 9110, 10.2.3); 0 where there is none, or it is a date."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(reply.headers.get("Retry-After", "")))
    return 0.0

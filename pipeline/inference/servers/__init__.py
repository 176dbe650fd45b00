"""The teacher on vLLM servers: the same questions and answers as `engine.Engine`, over HTTP."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from pipeline import config
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.inference.engine import Completion, Request
from pipeline.inference.servers import completions
from pipeline.inference.servers.pool import Pauses, ServerPool, UnansweredError, Url
from pipeline.inference.servers.timeouts import Limit, LoopThread, cancel_others
from pipeline.run.files import one_line

KEY = "RETORT_SERVER_KEY"
ATTEMPTS = 10  # at one request, on servers that were fit when it was sent
GATEWAY_ERRORS = (502, 503, 504)  # of what stands before a server that is gone
CONNECT_S = 10.0
IDLE_S = 2.0  # vLLM closes an idle connection after 5 s


class _Card(BaseModel):
    id: str
    max_model_len: int


class _Cards(BaseModel):
    data: list[_Card]


class _Version(BaseModel):
    version: str


@dataclass(frozen=True)
class ServerIdentity:
    """What a server says of itself that changes its answers; all of one run's servers say the same."""

    vllm: str
    model: str
    max_model_len: int
    system_fingerprint: str  # vLLM's hash of its build and settings; "" where it is turned off


class TeacherServers:
    """One or several vLLM servers that hold the teacher. Nothing stays open between two rounds of `answers`.

    Raises UserError where no server answers within `patience_s`, or one is unfit: another model, a wrong key, too few
    log-probs, processed log-probs.
    """

    def __init__(self, settings: config.Server, vocab_size: int, k: int = 0, pauses: Pauses | None = None) -> None:
        self._settings, self._k, self._pauses = settings, k, pauses or Pauses()
        self._urls = [Url(url) for url in settings.urls]
        self._served: ServerIdentity | None = None
        self.vocab_size = vocab_size
        if k > vocab_size:
            raise UserError(f"generate.k={k} is above the teacher's vocabulary of {vocab_size}")
        asyncio.run(self._open())

    async def _open(self) -> None:
        async with self._client() as client:
            pool = self._pool(client)
            try:
                await pool.open()
            finally:
                await pool.close()

    @property
    def served(self) -> ServerIdentity:
        """What the servers say of themselves."""
        assert self._served is not None  # noqa: S101 - the first that was taken in said it
        return self._served

    @property
    def max_model_len(self) -> int:
        return self.served.max_model_len

    @property
    def max_num_seqs(self) -> int:
        """Requests in flight."""
        return self._settings.concurrency * len(self._urls)

    @property
    def dtype(self) -> str:
        """Servers don't tell theirs, but in `served.system_fingerprint`."""
        return ""

    def answers(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Answers as they finish, out of order; at most `max_num_seqs` requests are read ahead of them.

        Raises UserError for a request that is refused or fails time and again, and where no server answers for long.
        """
        source, num_pending = iter(requests), 0
        done: SimpleQueue[Future[Completion]] = SimpleQueue()
        with LoopThread() as loop:  # the caller packs answers meanwhile: that must not stop the requests
            round_ = loop.run(self._begin())
            try:
                while True:
                    while num_pending < self.max_num_seqs and (request := next(source, None)) is not None:
                        loop.start(self._answer(round_, request)).add_done_callback(done.put)
                        num_pending += 1
                    if not num_pending:
                        break
                    answered = done.get()
                    num_pending -= 1
                    yield answered.result()
            finally:
                loop.run(round_.end())
        _say_failures(round_.pool)

    async def _begin(self) -> "_Round":
        client = self._client()
        pool = self._pool(client)
        try:
            await pool.open()
        except BaseException:
            await _Round(client, pool).end()
            raise
        return _Round(client, pool)

    async def _answer(self, round_: "_Round", request: Request) -> Completion:
        began = time.perf_counter()
        served = self.served
        body = completions.body(request, served.model, self.vocab_size, served.max_model_len)
        failures = 0
        while True:
            url = await round_.pool.take()
            sent_s = time.monotonic()
            try:
                content = await self._ask(round_.client, url, "/v1/completions", body, request.request_id)
                elapsed_s = time.perf_counter() - began
                with _unreadable():
                    answer = completions.answer(request, content, self.vocab_size, elapsed_s, served.system_fingerprint)
            except UnansweredError as failure:
                round_.pool.failed(url, sent_s, failure)
                failures += failure.is_requests
                if failures >= ATTEMPTS:
                    raise UserError(
                        f"{request.request_id}: failed {failures} times, though servers answer otherwise; the last time"
                        f" at {url.url}: {failure.reason}"
                    ) from None
            else:
                round_.pool.answered(url)
                return answer
            finally:
                round_.pool.release(url)

    async def _admit(self, client: httpx.AsyncClient, url: Url) -> None:
        """Raises UnansweredError where a server does not answer now, UserError where its answers would be of no use."""
        with _unreadable():
            cards = _Cards.model_validate_json(await self._ask(client, url, "/v1/models"))
        card = _chosen(cards.data, self._settings.model, url)
        if url.is_checked and (card.id, card.max_model_len) == (self.served.model, self.served.max_model_len):
            return
        with _unreadable():
            version = _Version.model_validate_json(await self._ask(client, url, "/version")).version
        body = completions.probe(card.id, self._k, self.vocab_size)
        hint = f"start it with --max-logprobs {body['logprobs']} or more" if self._k else "a probe"
        content = await self._ask(client, url, "/v1/completions", body, hint)
        with _unreadable():
            fingerprint = completions.check_probe(content, url.url)
        served = ServerIdentity(f"vllm {version}", card.id, card.max_model_len, fingerprint)
        self._served = self._served or served
        if served != self._served:
            raise UserError(f"{url.url}: is not what the servers before it were: {_difference(served, self._served)}")
        url.is_checked = True

    async def _ask(
        self, client: httpx.AsyncClient, url: Url, path: str, body: dict[str, Any] | None = None, note: str = ""
    ) -> bytes:
        """The content of a good reply; `note` stands behind a refusal.

        Raises UnansweredError where another try may help, else UserError.
        """
        longest_s = self._settings.timeout_s
        limit, method = Limit(longest_s, min(CONNECT_S, longest_s)), "POST" if body else "GET"
        try:
            async with limit:
                reply = await client.request(method, url.url + path, json=body, extensions={"trace": limit.trace})
        except httpx.ConnectError:
            raise UnansweredError("no connection", is_requests=False, is_down=True) from None
        except TimeoutError:
            if limit.is_connecting:
                raise UnansweredError("no connection", is_requests=False, is_down=True) from None
            raise UnansweredError(f"no answer within {longest_s:g} s") from None
        except httpx.HTTPError as error:
            raise UnansweredError(f"the connection broke ({type(error).__name__})", is_down=True) from None
        if reply.status_code == httpx.codes.OK:
            return reply.content
        if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise UserError(f"{url.url}: refuses the key; set {KEY} in the environment to the server's")
        is_busy = reply.status_code == httpx.codes.TOO_MANY_REQUESTS
        if is_busy or reply.status_code == httpx.codes.REQUEST_TIMEOUT or reply.is_server_error:
            is_down = reply.status_code in GATEWAY_ERRORS
            raise UnansweredError(f"HTTP {reply.status_code}", _retry_after_s(reply), not is_busy, is_down)
        why = _message(reply) + (f" ({note})" if note else "")
        raise UserError(f"{url.url}{path}: refused with HTTP {reply.status_code}: {why}")

    def _client(self) -> httpx.AsyncClient:
        key = os.environ.get(KEY, "")
        if not key.isascii() or any(c.isspace() or not c.isprintable() for c in key):
            raise UserError(f"{KEY}: a key has printable ASCII characters and no space or line end in it")
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,  # noqa: S113 - _ask has limits of its own
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_S),
            mounts={f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")},  # not through a proxy
        )

    def _pool(self, client: httpx.AsyncClient) -> ServerPool:
        limits = self._settings
        return ServerPool(
            self._urls,
            lambda url: self._admit(client, url),
            limits.concurrency,
            limits.patience_s,
            limits.timeout_s,
            self._pauses,
        )


@dataclass
class _Round:
    """What one call of `answers` holds open."""

    client: httpx.AsyncClient
    pool: ServerPool

    async def end(self) -> None:
        await cancel_others()
        await self.pool.close()
        await self.client.aclose()


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    """A reply of another shape is a failure of the server, or of what stands before it."""
    try:
        yield
    except completions.ReplacedError:
        raise UnansweredError("another server answers there", is_down=True) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UnansweredError("an unreadable answer" + (f" ({where}: {first['msg']})" if where else "")) from None
    except ValueError as error:
        raise UnansweredError(f"an unreadable answer ({error})") from None


def _chosen(cards: list[_Card], name: str | None, url: Url) -> _Card:
    """The model to ask for. Raises UserError where that is not clear."""
    by_id = {card.id: card for card in cards}
    listed = ", ".join(by_id) or "none"
    if name is None and len(by_id) != 1:
        raise UserError(f"{url.url}: serves several models or none ({listed}): name one with teacher.server.model")
    if name is not None and name not in by_id:
        raise UserError(f"{url.url}: serves no {name}, only {listed} (teacher.server.model)")
    return by_id[name] if name is not None else cards[0]


def _difference(now: ServerIdentity, before: ServerIdentity) -> str:
    changed = [name for name in vars(now) if getattr(now, name) != getattr(before, name)]
    listed = "; ".join(f"{name} {getattr(now, name)!r}, before {getattr(before, name)!r}" for name in changed)
    hint = " (it stands for build and settings; start it as the others were started)"
    return listed + (hint if changed == ["system_fingerprint"] else "")


def _message(reply: httpx.Response) -> str:
    """The server's own words, in one line."""
    try:
        data = reply.json()
        error = data.get("error", data.get("detail", data))
        text = error["message"] if isinstance(error, dict) and "message" in error else str(error)
    except (ValueError, AttributeError):
        text = reply.text
    return one_line(text) or "no reason given"


def _retry_after_s(reply: httpx.Response) -> float:
    """Retry-After, in seconds or as a date (RFC 9110, 10.2.3); 0 where there is none."""
    value = reply.headers.get("Retry-After", "")
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _say_failures(pool: ServerPool) -> None:
    if pool.failures:
        listed = ", ".join(f"{reason}: {num}" for reason, num in pool.failures.most_common())
        say(f"{pool.failures.total()} requests were sent again ({listed})")

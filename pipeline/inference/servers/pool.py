"""Which of several servers answer: one that fails is taken out, is asked again with growing pauses, and comes back."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pipeline.console import say
from pipeline.errors import UserError

TICK_S = 1.0  # between looks at the clock while no server is free


class UnansweredError(Exception):
    """One request that was not answered, and may be sent again."""

    def __init__(
        self, reason: str, retry_after_s: float = 0.0, is_requests: bool = True, is_down: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.retry_after_s = reason, retry_after_s
        self.is_requests = is_requests  # whether the request itself may be at fault
        self.is_down = is_down  # whether another server may stand there when it answers again


@dataclass(frozen=True)
class Pauses:
    """Exponential backoff with jitter: between half and all of first_s · 2^(failures − 1), no longer than longest_s."""

    first_s: float = 0.5
    longest_s: float = 30.0

    def after(self, num_failures: int) -> float:
        full_s = min(self.longest_s, self.first_s * 2 ** min(num_failures - 1, 30))
        return full_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


@dataclass
class Url:
    """One server: whether requests may be sent to it, and how it did."""

    url: str
    is_in: bool = False
    is_checked: bool = False  # that what stands there now is fit; set by `admit`
    since_s: float = 0.0  # monotonic: when it came in, or was taken out
    num_in_flight: int = 0
    num_failures: int = 0  # since its last answer
    reason: str = ""
    is_announced: bool = False  # that it is out


class ServerPool:
    """The servers of one round of requests. `admit` asks one whether it is fit: raises UnansweredError, UserError."""

    def __init__(
        self,
        urls: list[Url],
        admit: Callable[[Url], Awaitable[None]],
        concurrency: int,
        patience_s: float,
        longest_answer_s: float,
        pauses: Pauses,
    ) -> None:
        self.urls, self._admit, self._concurrency, self._pauses = urls, admit, concurrency, pauses
        self._patience_s, self._longest_answer_s = patience_s, longest_answer_s
        self._answered_s = time.monotonic()
        self._changed = asyncio.Event()
        self._returning: set[asyncio.Task[None]] = set()
        self._fault: Exception | None = None
        self.failures: Counter[str] = Counter()
        for url in urls:
            url.since_s = time.monotonic()

    async def open(self) -> None:
        """Try every server that is not in, and wait for one. Raises UserError where none answers, or one is unfit."""
        await asyncio.gather(*(self._try(url) for url in self.urls if not url.is_in))
        for url in self.urls:
            if not url.is_in:
                self._let_return(url, 0.0)
        self.release(await self.take())

    async def close(self) -> None:
        for task in self._returning:
            task.cancel()
        await asyncio.gather(*self._returning, return_exceptions=True)

    async def take(self) -> Url:
        """The least busy server that is in, to be released. Raises UserError where none has answered for too long."""
        while True:
            if self._fault is not None:
                raise self._fault
            free = [url for url in self.urls if url.is_in and url.num_in_flight < self._concurrency]
            if free:
                url = min(free, key=lambda url: url.num_in_flight)
                url.num_in_flight += 1
                return url
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(TICK_S, self._patience_s))
            self._check_patience()

    def release(self, url: Url) -> None:
        url.num_in_flight -= 1
        self._changed.set()

    def answered(self, url: Url) -> None:
        url.num_failures, self._answered_s = 0, time.monotonic()

    def failed(self, url: Url, sent_s: float, failure: UnansweredError) -> None:
        """Take a server out because of a request sent at `sent_s`, unless that is old news."""
        self.failures[failure.reason] += 1
        if not url.is_in or sent_s < url.since_s:
            return
        url.is_in, url.since_s = False, time.monotonic()
        self._note(url, failure)
        self._let_return(url, failure.retry_after_s)
        if time.monotonic() - self._answered_s > self._patience_s + self._longest_answer_s:
            self._give_up()  # one that is in each time it is asked, and yet answers nothing

    def _let_return(self, url: Url, retry_after_s: float) -> None:
        task = asyncio.get_running_loop().create_task(self._return(url, retry_after_s))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _return(self, url: Url, retry_after_s: float) -> None:
        try:
            while not url.is_in:
                await asyncio.sleep(max(retry_after_s, self._pauses.after(max(1, url.num_failures))))
                retry_after_s = await self._try(url)
        except Exception as error:  # raised where requests wait: nobody waits for this task
            self._fault = error
        self._changed.set()

    async def _try(self, url: Url) -> float:
        """Take a server in if it is fit. Returns how long it asks to be left alone, seconds."""
        try:
            await self._admit(url)
        except UnansweredError as failure:
            self._note(url, failure)
            if not url.is_announced:  # a single failure is no news: the next try answers that
                url.is_announced = True
                say(f"{url.url}: taken out: {url.reason}; it is asked again until it answers")
            return failure.retry_after_s
        url.is_in, url.since_s = True, time.monotonic()
        if url.is_announced:
            url.is_announced = False
            say(f"{url.url}: answers again")
        return 0.0

    def _note(self, url: Url, failure: UnansweredError) -> None:
        url.num_failures += 1
        url.reason = failure.reason
        url.is_checked &= not failure.is_down

    def _check_patience(self) -> None:
        now_s = time.monotonic()
        if all(not url.is_in and now_s - url.since_s > self._patience_s for url in self.urls):
            self._give_up()

    def _give_up(self) -> None:
        listed = ", ".join(f"{url.url}: {url.reason}" for url in self.urls)
        self._fault = UserError(
            f"no server answers ({listed}), and none has for {self._patience_s:g} s (teacher.server.patience_s); see to"
            " them and run the same command again: what is committed is kept"
        )
        self._changed.set()

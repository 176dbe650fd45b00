"""Time-outs of a request that count the server's time alone, and a thread whose event loop waits for nobody."""

import asyncio
import math
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
CHECKS, LONGEST_TICK_S = 8, 1.0  # of a time-out: how often it looks at the clock
CONNECTING = ("connection.connect_tcp.", "connection.start_tls.")  # httpcore's names for its steps


class Limit:
    """`async with Limit(...)` raises TimeoutError after so many seconds in which this process's event loop ran.

    A stall counts as no time: while this process was busy, or stopped, an answer may have come, and it is read first.
    `trace` is httpx's extension of that name: with it, making a connection has the shorter limit `connect_s`.
    """

    def __init__(self, total_s: float, connect_s: float = math.inf) -> None:
        self._connect_s = connect_s
        self._left_s, self._connect_left_s = total_s, math.inf
        self._tick_s = min(LONGEST_TICK_S, total_s / CHECKS, connect_s / CHECKS)

    async def __aenter__(self) -> "Limit":
        self._loop, self._timeout = asyncio.get_running_loop(), asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._handle.cancel()
        await self._timeout.__aexit__(kind, error, at)

    @property
    def is_connecting(self) -> bool:
        return self._connect_left_s < math.inf

    async def trace(self, step: str, _: dict[str, Any]) -> None:
        """Note where a request stands."""
        if step.startswith(CONNECTING):
            self._connect_left_s = self._connect_s if step.endswith(".started") else math.inf

    def _wait(self) -> None:
        self._due_s = self._loop.time() + self._tick_s
        self._handle = self._loop.call_at(self._due_s, self._count)

    def _count(self) -> None:
        if self._loop.time() - self._due_s < self._tick_s:  # else the loop stood still
            self._left_s -= self._tick_s
            self._connect_left_s -= self._tick_s
        if min(self._left_s, self._connect_left_s) <= 0:
            self._timeout.reschedule(self._loop.time())
        else:
            self._wait()


class LoopThread:
    """An event loop in a thread of its own: it goes on while the caller is busy with what it was given."""

    def __enter__(self) -> "LoopThread":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.run(cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result, waited for."""
        return self.start(coroutine).result()


async def cancel_others() -> None:
    """End every other task of this loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)

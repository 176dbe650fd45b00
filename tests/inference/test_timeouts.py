"""Time-outs that a client's own delays do not use up."""

import asyncio
import time

import pytest

from pipeline.inference.servers.timeouts import Limit, LoopThread


async def _stalled(limit: Limit, stalls: int, stall_s: float) -> str:
    async with limit:
        for _ in range(stalls):
            await asyncio.sleep(0.001)
            time.sleep(stall_s)  # the loop stands still
        return "came"


def test_time_in_which_the_loop_stood_still_is_not_counted() -> None:
    assert asyncio.run(_stalled(Limit(0.2), stalls=5, stall_s=0.1)) == "came"


def test_time_in_which_it_ran_is_counted() -> None:
    async def waits() -> None:
        async with Limit(0.1):
            await asyncio.sleep(30)

    with pytest.raises(TimeoutError):
        asyncio.run(waits())


@pytest.mark.parametrize("step", ["connect_tcp", "start_tls"])
def test_a_connection_has_a_limit_of_its_own(step: str) -> None:
    limit = Limit(60.0, connect_s=0.05)

    async def connects(ends: bool) -> None:
        async with limit:
            await limit.trace(f"connection.{step}.started", {})
            if ends:
                await limit.trace(f"connection.{step}.complete", {})
            await asyncio.sleep(0.2 if ends else 30)

    with pytest.raises(TimeoutError):
        asyncio.run(connects(ends=False))
    assert limit.is_connecting
    limit = Limit(60.0, connect_s=0.05)
    asyncio.run(connects(ends=True))
    assert not limit.is_connecting


def test_a_loop_in_a_thread_goes_on_meanwhile_and_leaves_no_task() -> None:
    ended: list[str] = []

    async def counts() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("cancelled")

    async def says() -> str:
        return "done"

    with LoopThread() as loop:
        loop.start(counts())
        soon = loop.start(says())
        time.sleep(0.05)
        assert soon.done()
    assert ended == ["cancelled"]

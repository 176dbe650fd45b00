"""vLLM's own HTTP server on this machine: for `retort serve`, and for lm-evaluation-harness."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx

from pipeline import hardware
from pipeline.errors import UserError

HOST = "127.0.0.1"
START_S, STOP_S = 3600.0, 30.0  # the largest models take half an hour from a slow disk
QUIET = ("--disable-uvicorn-access-log", "--uvicorn-log-level=warning", "--no-enable-log-requests")


@contextmanager
def running(
    name: str, settings: dict[str, Any], port: int, key: str, memory_share: float
) -> Iterator[subprocess.Popen[bytes]]:
    """The server of a model under `name`, started and, at the end, stopped; `becomes_healthy` waits until it answers.

    `settings` are arguments of vLLM's engine. The key is handed on in the environment: others on this machine can read
    a command line. On a CPU the KV cache takes `memory_share` of what is free.
    """
    flags = [f"--served-model-name={name}", f"--host={HOST}", f"--port={port}", *QUIET, *as_flags(settings)]
    own = hardware.stage_environment()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", *flags],
        env={**hardware.vllm_environment(memory_share), **own, "VLLM_API_KEY": key},
        start_new_session=True,  # a group of its own: ctrl-C reaches this process alone, which stops that whole group
        preexec_fn=functools.partial(hardware.die_with_parent, signal.SIGTERM),
    )
    try:
        yield process
    finally:
        _stop(process)


def becomes_healthy(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers; False where it ended instead. Raises UserError where it does neither."""
    deadline = time.monotonic() + START_S
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise UserError(
                f"the vLLM server has not answered on {HOST}:{port} in {START_S / 60:.0f} minutes, and was stopped; see"
                " its last message above: weights on a slow disk, a download, or GPUs that wait for each other"
            )
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://{HOST}:{port}/health", timeout=5, trust_env=False).is_success:
                return True
        time.sleep(0.5)
    return False


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def as_flags(settings: dict[str, Any]) -> list[str]:
    """Arguments of vLLM's engine as its command line spells them."""
    listed: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            listed.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, dict):
            listed.append(f"--{flag}={json.dumps(value)}")
        elif isinstance(value, list | tuple):
            listed += [f"--{flag}", *map(str, value)]
        else:
            listed.append(f"--{flag}={value}")
    return listed


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server, and the engine's own processes, which outlive a server that was killed."""
    try:
        process.terminate()
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

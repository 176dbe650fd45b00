"""vLLM's own HTTP server on this machine: for `retort serve`, and for lm-evaluation-harness."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import httpx

from pipeline.errors import UserError
from pipeline.inference import kv_cache
from pipeline.inference.kv_cache import Load
from pipeline.machine import hardware

HOST = "127.0.0.1"
START_S, STOP_S = 3600.0, 30.0  # the largest models take half an hour from a slow disk
QUIET = ("--disable-uvicorn-access-log", "--uvicorn-log-level=warning", "--no-enable-log-requests")


@contextmanager
def running(name: str, settings: dict[str, Any], port: int, key: str, load: Load) -> Iterator[subprocess.Popen[bytes]]:
    """The server of a model under `name`: it answers, or has ended (`poll` tells). It is stopped at the end.

    `settings` are arguments of vLLM's engine, `load` is what it will be asked. The key is handed on in the environment:
    others on this machine can read a command line. Raises UserError if one request's KV cache finds no room.
    """
    process = kv_cache.start(settings, load, functools.partial(_answering, name, port, key))
    try:
        yield process
    finally:
        _stop(process)


class _Messages:
    """Passes on what a process writes to standard error, and reads there whether vLLM refuses a KV cache."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._refused: kv_cache.RefusedError | None = None
        self._thread = threading.Thread(target=self._pass_on, args=(process.stderr,), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Once the process has ended. Raises RefusedError if it ended for that."""
        self._thread.join(STOP_S)
        if self._refused:
            raise self._refused

    def _pass_on(self, lines: IO[bytes]) -> None:
        for line in lines:
            os.write(2, line)
            try:
                kv_cache.check_refused(line.decode(errors="replace"))
            except kv_cache.RefusedError as error:
                self._refused = error


def _answering(name: str, port: int, key: str, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    """The server's process, which answers or has ended. Raises RefusedError if it ended for want of a KV cache."""
    flags = [f"--served-model-name={name}", f"--host={HOST}", f"--port={port}", *QUIET, *as_flags(settings)]
    environment = {**hardware.vllm_environment(), **hardware.stage_environment(), "VLLM_API_KEY": key}
    environment.pop(kv_cache.VARIABLE, None)  # it has been read, and vLLM knows whole GiB alone
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", *flags],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a group of its own: ctrl-C reaches this process alone, which stops that whole group
        preexec_fn=functools.partial(hardware.die_with_parent, signal.SIGTERM),
    )
    messages = _Messages(process)
    try:
        if becomes_healthy(process, port):
            return process
    except BaseException:
        _stop(process)
        raise
    _stop(process)  # what is left of its group
    messages.check()
    return process


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


def context_tokens(port: int, key: str) -> int:
    """The longest prompt and answer that a server takes."""
    headers = {"Authorization": f"Bearer {key}"}
    reply = httpx.get(f"http://{HOST}:{port}/v1/models", headers=headers, timeout=60, trust_env=False)
    return int(reply.raise_for_status().json()["data"][0]["max_model_len"])


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

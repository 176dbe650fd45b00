"""`retort serve`: the teacher on a vLLM server of this machine, with the flags that `server.Server` needs."""

import functools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import httpx

from pipeline import hardware, models
from pipeline.config import Config
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.generate import completions
from pipeline.generate.engine import check_engine_args, engine_settings
from pipeline.generate.pilot import WIDEST_K
from pipeline.generate.server import KEY

HOST = "127.0.0.1"
MEMORY_SHARE = 0.4  # of what is free, for the KV cache of a CPU
STOP_S = 30.0
QUIET = ("--disable-uvicorn-access-log", "--uvicorn-log-level=warning", "--no-enable-log-requests")


def run(config: Config, port: int, arguments: str) -> None:
    """Serve until interrupted; `arguments` are the client's own: its config and overrides.

    Raises UserError where the port is taken, there is no key, or vLLM ends by itself.
    """
    teacher = models.find(config.teacher.model, config.teacher.revision)
    if config.teacher.engine:  # else vLLM need not be imported here
        check_engine_args(config.teacher.engine)
    _check_port(port)
    key, is_new = _key()
    say(f"starting vLLM with {teacher.name} on {HOST}:{port}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's ctrl-C
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", *flags(config, teacher, port)],
        env=environment(key),
        start_new_session=True,  # a group of its own: ctrl-C reaches this process alone, which stops that whole group
        preexec_fn=functools.partial(hardware.die_with_parent, signal.SIGTERM),
    )
    try:
        if _becomes_healthy(process, port):
            secret = f"{KEY}={key} " if is_new else ""
            override = f"'teacher.server.urls=[http://{HOST}:{port}]'"
            say(f"ready; ctrl-C stops it. In another terminal:\n{secret}retort run {arguments} {override}")
            process.wait()
    except KeyboardInterrupt:
        say("stopping")
        return
    finally:
        _stop(process)
    raise UserError(f"the vLLM server ended with code {process.returncode}; see its messages above")


def flags(config: Config, teacher: models.Model, port: int) -> list[str]:
    """The server's command line: all but the key, which others on this machine could read there."""
    vocab_size = teacher.vocab_size()
    k = completions.asked_logprobs(max(config.generate.k, WIDEST_K), vocab_size)
    name = config.teacher.server.model or teacher.name
    own = [f"--served-model-name={name}", f"--host={HOST}", f"--port={port}", *QUIET]
    return own + as_flags(engine_settings(str(teacher.path), config.teacher.engine, k, config.generate.mode == "score"))


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


def environment(key: str) -> dict[str, str]:
    """The server's environment: that of a stage, vLLM's settings for a CPU, and the key."""
    own = hardware.stage_environment()
    return {**hardware.vllm_environment(MEMORY_SHARE), **own, "VLLM_API_KEY": key}


def _key() -> tuple[str, bool]:
    """The key, and whether it is a new one. Raises UserError where a new one would be written to a log."""
    if key := os.environ.get(KEY):
        return key, False
    if not sys.stderr.isatty():
        raise UserError(f"set {KEY} in the environment: here, where no terminal is, a new key would end up in a log")
    return secrets.token_urlsafe(24), True


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port} can't be had ({error.strerror}); choose another with --port") from None


def _becomes_healthy(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers; False where it ended instead."""
    while process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://{HOST}:{port}/health", timeout=5, trust_env=False).is_success:
                return True
        time.sleep(0.5)
    return False


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

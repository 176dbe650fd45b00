"""`retort serve`: the teacher on a vLLM server of this machine, with the flags that `server.Server` needs."""

import os
import secrets
import signal
import socket
import sys
from typing import Any

from pipeline.config import Config
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.generate.pilot import WIDEST_K
from pipeline.inference import http_server
from pipeline.inference.engine import check_engine_args
from pipeline.inference.engine_args import engine_settings
from pipeline.inference.http_server import HOST
from pipeline.inference.kv_cache import Load
from pipeline.inference.servers import KEY, completions
from pipeline.models import lookup


def run(config: Config, port: int, arguments: str) -> None:
    """Serve until interrupted; `arguments` are the client's own: its config and overrides.

    Raises UserError if the port is taken, there is no key, memory is short, or vLLM ends by itself.
    """
    teacher = lookup.find(config.teacher.model, config.teacher.revision)
    if config.teacher.engine:  # else vLLM need not be imported here
        check_engine_args(config.teacher.engine)
    _check_port(port)
    key, is_new = _key()
    say(f"starting vLLM with {teacher.name} on {HOST}:{port}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's ctrl-C
    name = config.teacher.server.model or teacher.name
    load = Load(config.teacher.server.concurrency)
    try:
        with http_server.running(name, engine(config, teacher), port, key, load) as process:
            if process.poll() is None:
                secret = f"{KEY}={key} " if is_new else ""
                override = f"'teacher.server.urls=[http://{HOST}:{port}]'"
                say(f"ready; ctrl-C stops it. In another terminal:\n{secret}retort run {arguments} {override}")
                process.wait()
    except KeyboardInterrupt:
        say("stopped")
        return
    raise UserError(f"the vLLM server ended with code {process.returncode}; see its messages above")


def engine(config: Config, teacher: lookup.Model) -> dict[str, Any]:
    """Arguments of the server's engine: those that capture needs, over the config's."""
    k = completions.asked_logprobs(max(config.generate.k, WIDEST_K), teacher.vocab_size())
    return engine_settings(str(teacher.path), config.teacher.engine, k, config.generate.mode == "score")


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
            raise UserError(f"port {port} can't be used ({error.strerror}); choose another with --port") from None

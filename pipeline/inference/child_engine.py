"""A model served by vLLM in a process of its own, asked through a pipe (inference/worker.py)."""

import contextlib
import json
import signal
import subprocess
import sys
from dataclasses import asdict
from types import TracebackType
from typing import Any

import psutil

from pipeline.config import Server
from pipeline.errors import UserError
from pipeline.inference.engine_args import num_gpus
from pipeline.inference.kv_cache import Load
from pipeline.machine import meters

Reply = dict[str, Any]
COMMAND = (sys.executable, "-P", "-m", "pipeline.inference.worker")


class ChildEngine:
    """`with Served(...) as model: model.ask(...)`. The process starts at once; the first question waits for its engine.

    `load` is what it will be asked. With `server.urls` the process hands the questions on to those servers, and starts
    no engine.
    """

    def __init__(
        self, name: str, path: str, engine_args: dict[str, Any], load: Load, server: Server | None = None
    ) -> None:
        self.name, self.num_gpus = name, num_gpus(engine_args)
        command = [*COMMAND, path, json.dumps(engine_args), json.dumps(asdict(load))]
        if server is not None and server.urls:
            command.append(server.model_dump_json())
        self.gpu_bytes_before = meters.gpu_used_bytes()  # so that what the engine takes can be told
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._is_ready = False

    def __enter__(self) -> "ChildEngine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._kill()
        self._process.communicate()

    def _kill(self) -> None:
        """With the engine's own processes, which would outlive it and keep the GPU's memory."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.kill()

    def wait_until_ready(self) -> None:
        """Raises UserError where the engine does not start."""
        if not self._is_ready:
            ready = self._read()
            self.context_tokens: int = ready["context_tokens"]
            self.start_s: float = ready["start_s"]  # from its first line of code to the engine, ready to be asked
            self._is_ready = True

    @property
    def pid(self) -> int:
        """Of the process whose children, where it has some, are the engine's own."""
        return self._process.pid

    def ask(self, requests: list[dict[str, Any]], timed: bool = False) -> Reply:
        """`{"answers": [...], "elapsed_s": ...}`, the answers in the order of the requests."""
        self.wait_until_ready()
        assert self._process.stdin is not None  # noqa: S101 - it was opened as a pipe
        with contextlib.suppress(BrokenPipeError):  # it died: _read says so
            self._process.stdin.write(json.dumps({"requests": requests, "timed": timed}) + "\n")
            self._process.stdin.flush()
        reply = self._read()
        by_id = {answer["request_id"]: answer for answer in reply["answers"]}
        return {**reply, "answers": [by_id[request["request_id"]] for request in requests]}

    def _read(self) -> Reply:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            if code == -signal.SIGKILL:
                raise UserError(f"the vLLM process of {self.name} was killed, probably because memory ran out")
            raise UserError(f"the vLLM process of {self.name} ended with code {code}; see its messages above")
        reply = json.loads(line)
        if "error" in reply:
            raise UserError(f"{self.name}: {reply['error']}")
        return reply

"""An OpenAI-compatible server with a made-up model, for what a real one does only when it is ill."""

import contextlib
import json
import socket
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

VOCAB = 40
KEY = "secret-key"


def logprobs_of(context: list[int]) -> np.ndarray:
    """The made-up model: the distribution of the next token, nats, shape V."""
    logits_V = np.random.default_rng(context).normal(size=VOCAB) * 2
    return logits_V - np.log(np.exp(logits_V).sum())


def drawn(prompt: list[int], seed: int, max_tokens: int) -> list[int]:
    """Its answer: any token may come, so many are outside the best few."""
    rng = np.random.default_rng([seed, *prompt])
    return [int(token) for token in rng.integers(1, VOCAB, size=max_tokens)]


def best(logprobs_V: np.ndarray, k: int) -> list[int]:
    return [int(token) for token in np.argsort(-logprobs_V, kind="stable")[:k]]


class FakeServer:
    """`with FakeServer() as server`. Faults are taken one by one by the requests that come, probes aside."""

    def __init__(self, port: int = 0, **settings: Any) -> None:
        self.port = port
        self.models, self.max_model_len, self.max_logprobs = ["fake"], 64, 20
        self.cuts_at_asked = self.is_processed = self.adds_bos = False
        self.tokens_beyond = 0
        self.poison: list[int] | None = None
        self.delay_s = 0.0
        self.retry_after = "0"
        self.faults: deque[str] = deque()
        self.always = ""
        vars(self).update(settings)
        self.answered: Counter[tuple[int, ...]] = Counter()
        self.asked_at: list[float] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "FakeServer":
        fake = self

        class Handler(_Handler):
            server_state = fake

        self._http = _Http(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.hang_up()
        self._http.server_close()
        self._thread.join()

    def fault(self) -> str:
        with self.lock:
            return self.faults.popleft() if self.faults else self.always

    def reply(self, asked: dict[str, Any]) -> dict[str, Any]:
        prompt = asked["prompt"]
        choice: dict[str, Any] = {
            "finish_reason": "length",
            "prompt_token_ids": [1, *prompt] if self.adds_bos else prompt,
            "text": "",
        }
        if asked.get("prompt_logprobs") is not None:
            rows = [
                self._scored(prompt[:t], prompt[t], asked["prompt_logprobs"]) if t else None for t in range(len(prompt))
            ]
            return self._whole(choice | {"token_ids": [3], "prompt_logprobs": rows})
        tokens = [t + self.tokens_beyond for t in drawn(prompt, asked["seed"], asked["max_tokens"])]
        rows = [self._row(prompt + tokens[:t], tokens[t] % VOCAB, asked) for t in range(len(tokens))]
        logprobs = {
            "token_logprobs": [row[next(iter(row))] for row in rows],
            "top_logprobs": [{f"token_id:{token}": value for token, value in row.items()} for row in rows],
        }
        return self._whole(choice | {"token_ids": tokens, "logprobs": logprobs if asked["logprobs"] else None})

    def _whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [choice], "system_fingerprint": f"fake-{self.max_model_len}"}

    def _row(self, context: list[int], token: int, asked: dict[str, Any]) -> dict[int, float]:
        logprobs_V = logprobs_of(context)
        if self.is_processed and asked["top_k"]:
            logprobs_V[best(logprobs_V, VOCAB)[asked["top_k"] :]] = -9999.0
        listed = list(dict.fromkeys([token, *best(logprobs_V, asked["logprobs"] or 0)]))
        listed = listed[: asked["logprobs"]] if self.cuts_at_asked else listed
        return {token: float(logprobs_V[token]) for token in listed}

    def _scored(self, context: list[int], token: int, k: int) -> dict[str, Any]:
        logprobs_V = logprobs_of(context)
        order = best(logprobs_V, VOCAB)
        return {str(t): {"logprob": float(logprobs_V[t]), "rank": order.index(t) + 1} for t in [token, *order[:k]]}


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._sockets: list[socket.socket] = []
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._sockets.append(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """As a process does that dies: its connections break."""
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are meant."""


class _Handler(BaseHTTPRequestHandler):
    server_state: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.server_state
        if self.path == "/version":
            self._send(200, {"version": "1.2.3"})
        elif self._is_allowed():
            self._send(200, {"data": [{"id": name, "max_model_len": fake.max_model_len} for name in fake.models]})

    def do_POST(self) -> None:
        fake = self.server_state
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_allowed():
            return
        wanted = asked.get("logprobs") or 0
        if wanted > fake.max_logprobs:
            message = f"Requested sample logprobs of {wanted}, which is greater than max allowed: {fake.max_logprobs}"
            self._send(400, {"error": {"message": message}})
            return
        is_probe = asked["prompt"] == [0]
        fault = "" if is_probe else fake.fault()
        if not is_probe:
            fake.asked_at.append(time.monotonic())
            time.sleep(fake.delay_s)
        if fake.poison is not None and asked["prompt"] == fake.poison:
            fault = "500"
        self._answer(fake, asked, fault, is_probe)

    def _answer(self, fake: FakeServer, asked: dict[str, Any], fault: str, is_probe: bool) -> None:
        whole = json.dumps(fake.reply(asked)).encode()
        if fault in ("429", "500", "503"):
            self._send(int(fault), {"error": {"message": "busy"}}, {"Retry-After": fake.retry_after})
        elif fault == "400":
            self._send(400, {"error": {"message": "no such thing"}})
        elif fault == "garbage":
            self._send_bytes(200, b"<html>it works</html>")
        elif fault == "shape":
            self._send(200, {"choices": []})
        elif fault == "short":
            cut = fake.reply(asked)
            cut["choices"][0]["token_ids"].append(5)
            self._send(200, cut)
        elif fault == "aborted":
            cut = fake.reply(asked)
            cut["choices"][0]["finish_reason"] = "abort"
            self._send(200, cut)
        elif fault == "drop":
            self.close_connection = True
        elif fault == "truncated":
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2])
            self.close_connection = True
        else:
            if fault == "hang":
                time.sleep(3.0)
            if not is_probe and fault != "hang":
                with fake.lock:
                    fake.answered[tuple(asked["prompt"])] += 1
            self._send_bytes(200, whole)

    def _is_allowed(self) -> bool:
        allowed = self.headers.get("Authorization") == f"Bearer {KEY}"
        if not allowed:
            self._send(401, {"error": "Unauthorized"})
        return allowed

    def _send(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(data).encode(), headers)

    def _send_bytes(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

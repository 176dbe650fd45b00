"""A proxy before a server of 127.0.0.1 that answers some requests wrongly, or not at all: seeded, at a given rate."""

import http.client
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("429", "500", "garbage", "truncated", "dropped", "late")
LATE_S = 24.0  # to be above the client's timeout


class FaultyProxy:
    """`with FaultyProxy(port, fault_frac=0.3, seed=0) as proxy`: `proxy.url`, and `proxy.faults` by kind."""

    def __init__(self, target_port: int, fault_frac: float, seed: int = 0) -> None:
        self.target_port, self.fault_frac = target_port, fault_frac
        self.faults: Counter[str] = Counter()
        self.num_requests = 0
        self._random, self._lock = random.Random(seed), threading.Lock()

    def __enter__(self) -> "FaultyProxy":
        proxy = self

        class Handler(_Handler):
            state = proxy

        self._http = _Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def fault(self) -> str:
        with self._lock:
            self.num_requests += 1
            if self._random.random() >= self.fault_frac:
                return ""
            kind = self._random.choice(FAULTS)
            self.faults[kind] += 1
            return kind


class _Http(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    state: FaultyProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

    def _pass_on(self, body: bytes) -> None:
        fault = self.state.fault()
        if fault in ("429", "500"):
            self._send(int(fault), b'{"error": {"message": "made up"}}', {"Retry-After": "0"})
            return
        if fault == "garbage":
            self._send(200, b'{"choices": [{"text": "hel')
            return
        status, content = self._asked(body)  # what follows fails after the server has worked
        if fault == "late":
            time.sleep(LATE_S)
        if fault != "dropped":
            self._send(status, content, cut=fault == "truncated")
        self.close_connection = fault in ("dropped", "truncated", "late")

    def _asked(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.state.target_port)
        kept = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
        try:
            connection.request(self.command, self.path, body, kept)
            reply = connection.getresponse()
            return reply.status, reply.read()
        except OSError:
            return 502, b"{}"
        finally:
            connection.close()

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)

"""An OpenAI-compatible chat endpoint whose verdicts are known: the judges that evaluate has to see through."""

import json
import random
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLACES = (" of assistant A", " of assistant B", "")
KEY = "sk-judge-4f1d9c77e02b4a51"
Policy = Callable[[str, str, str], str]  # the question, the answers in places A and B → A, B or tie


def first_place(question: str, a: str, b: str) -> str:
    return "A"


def longer(question: str, a: str, b: str) -> str:
    return "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


def by_score(score: Callable[[str, str], float]) -> Policy:
    """A fair judge of answers whose worth, given the question, is known."""

    def judge(question: str, a: str, b: str) -> str:
        worth_a, worth_b = score(question, a), score(question, b)
        return "tie" if worth_a == worth_b else "A" if worth_a > worth_b else "B"

    return judge


class FakeJudge:
    """`with FakeJudge(policy) as judge`. `faults` are taken one by one by the requests that come."""

    def __init__(self, policy: Policy, **settings: Any) -> None:
        self.policy = policy
        self.garbage_frac = 0.0  # of replies, by lot
        self.grade: Callable[[str, str], float] = lambda question, answer: 5.0
        self.needs_key = False
        self.usage: tuple[int, int] | None = (100, 10)  # prompt and reply, tokens
        self.delay_s = 0.0
        self.faults: deque[str] = deque()
        self.always = ""
        self.refuses = ""  # questions with this in them
        self.models: list[str] | None = ["judge"]  # None: it lists none
        self.unlisted: list[str] = []  # models that it serves besides
        vars(self).update(settings)
        self.asked: Counter[str] = Counter()  # by text of the first message
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self._lots = random.Random(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def num_asked(self) -> int:
        return self.asked.total()

    def __enter__(self) -> "FakeJudge":
        fake = self

        class Handler(_Handler):
            judge = fake

        self._http = _Http(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def reply(self, text: str) -> str:
        with self.lock:
            if self._lots.random() < self.garbage_frac:
                return "Both have their merits. I would rather not choose.\nVerdict: A or B"
        question = _part(text, r"=== Question ===\n(.*?)\n===")
        shown = [_part(text, rf"=== Answer{whose} ===\n(.*?)\n=== End of the answer") for whose in PLACES]
        if "Verdict: tie" in text:
            return f"The difference is plain.\n\nVerdict: {self.policy(question, shown[0], shown[1])}"
        return f"Well.\nGrade: {self.grade(question, shown[2]):g}"

    def fault(self) -> str:
        with self.lock:
            return self.faults.popleft() if self.faults else self.always


def _part(text: str, pattern: str) -> str:
    found = re.search(pattern, text, re.DOTALL)
    return found[1] if found else ""


class _Http(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are meant."""


class _Handler(BaseHTTPRequestHandler):
    judge: FakeJudge
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        fake, name = self.judge, self.path.removeprefix("/v1/models/")
        if fake.needs_key and self.headers.get("Authorization", "") != f"Bearer {KEY}":
            self._send(401, {"error": {"message": "wrong key"}})
        elif self.path == "/v1/models" and fake.models is not None:
            self._send(200, {"data": [{"id": model} for model in fake.models]})
        else:
            self._send(200 if name in fake.unlisted else 404, {"id": name})

    def do_POST(self) -> None:
        fake = self.judge
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][0]["content"]
        with fake.lock:
            fake.asked[text] += 1
            fake.bodies.append(asked)
            fake.in_flight += 1
            fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
        try:
            self._answer(fake, asked, text)
        finally:
            with fake.lock:
                fake.in_flight -= 1

    def _answer(self, fake: FakeJudge, asked: dict[str, Any], text: str) -> None:
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        fault = fake.fault()
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": f"nothing at {self.path}"}})
        elif fake.needs_key and key != KEY:
            self._send(401, {"error": {"message": f"wrong key {key}"}})
        elif fake.refuses and fake.refuses in text:
            self._send(400, {"error": {"message": "too long"}})
        elif fault == "html":
            self._send_bytes(200, b"<html>it works</html>")
        elif fault == "shape":
            self._send(200, {"choices": []})
        elif fault == "drop":
            self.close_connection = True
        elif fault == "echo":
            self._send(400, {"error": {"message": f"no model for {key}"}})
        elif fault:
            self._send(int(fault), {"error": {"message": "no"}})
        else:
            time.sleep(fake.delay_s)
            content = fake.reply(text)
            message: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": content}}]}
            if fake.usage:
                message["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), fake.usage, strict=True))
            self._send(200, message)

    def _send(self, status: int, data: Any) -> None:
        self._send_bytes(status, json.dumps(data).encode())

    def _send_bytes(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

"""The pages, and the vote that comes back. Nothing is kept in memory: votes.jsonl is read for each page."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from jinja2 import Environment
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from pipeline.compare.blind_questions import BlindQuestion, draw
from pipeline.compare.guard import Guard
from pipeline.errors import UserError
from pipeline.report.page import script_hash, templates
from pipeline.run import votes
from pipeline.run.commit import now
from pipeline.run.rundir import RunDir
from pipeline.run.votes import MAX_NAME_CHARS, Choice, Vote

MAX_BODY_BYTES = 4096
POLICY = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
CHOICES: list[tuple[Choice, str, str]] = [  # what is sent, what the button says, its key
    ("a", "A is better", "A"),
    ("b", "B is better", "B"),
    ("both_good", "Both are good", "G"),
    ("both_bad", "Both are bad", "X"),
    ("skip", "Skip", "S"),
]
EXPLAINED = {
    400: "That was not a vote that this page could have sent. Nothing was saved; go back and choose again.",
    403: "This address is not valid, or no longer. The window in which `retort compare` runs shows the current one.",
    404: "There is no such page.",
}


class Sent(BaseModel):
    """The form that a page sends."""

    vote: Choice
    voter: str = Field(default="", max_length=MAX_NAME_CHARS)


def application(run_dir: RunDir, key: str, seed: int) -> ASGIApp:
    """The whole site, below /KEY/. Raises UserError where the run has no answers to compare."""
    pages = _Pages(run_dir, draw(run_dir, seed))
    routes = [
        Route("/", pages.start),
        Route("/next", pages.next),
        Route("/done", pages.done),
        Route("/questions/{number:int}", pages.question, methods=["GET"]),
        Route("/questions/{number:int}", pages.vote, methods=["POST"]),
    ]
    failures: dict[Any, Any] = {HTTPException: pages.refused, UserError: pages.not_saved}
    site = Starlette(routes=[Mount(f"/{key}", routes=routes)], exception_handlers=failures)
    style, script = pages.environment.globals["style"], pages.environment.globals["script"]
    policy = f"{POLICY}; style-src {script_hash(str(style))}; script-src {script_hash(str(script))}"
    return Guard(site, key, policy, pages.message(403))


class _Pages:
    """Each page as a function of the request and of what is on disk."""

    def __init__(self, run_dir: RunDir, questions: list[BlindQuestion]) -> None:
        self.run_dir, self.questions = run_dir, questions
        self.environment = _environment()

    def start(self, request: Request) -> Response:
        return self._page("start.html.j2", num=len(self.questions), max_chars=MAX_NAME_CHARS)

    def next(self, request: Request) -> Response:
        """On to the first question after `after` that this voter has not judged, or to one before it, or to the end."""
        voter = _voter(request)
        judged = self._judged(voter)
        after = int(text) if (text := request.query_params.get("after", "")).isdecimal() and len(text) < 10 else 0
        order = [*range(after + 1, len(self.questions) + 1), *range(1, len(self.questions) + 1)]
        number = next((n for n in order if n not in judged and n <= len(self.questions)), None)
        return _redirect(f"questions/{number}" if number else "done", voter=voter)

    def done(self, request: Request) -> Response:
        voter = _voter(request)
        num_judged, num = len(self._judged(voter)), len(self.questions)
        return self._page("done.html.j2", voter=voter, num_judged=num_judged, num=num, path=str(self.run_dir.path))

    def question(self, request: Request) -> Response:
        voter, (number, asked) = _voter(request), self._asked(request)
        judged = self._judged(voter)
        return self._page(
            "question.html.j2",
            number=number,
            num=len(self.questions),
            num_judged=len(judged),
            exchanges=asked.pair.exchanges,
            instruction=asked.instruction,
            sides=(("A", asked.a), ("B", asked.b)),
            choices=CHOICES,
            chosen=_as_shown(judged[number], asked) if number in judged else None,
            voter=voter,
        )

    async def vote(self, request: Request) -> Response:
        number, asked = self._asked(request)
        sent = await _sent(request)
        vote = Vote(
            item_id=asked.pair.item_id,
            turn=asked.pair.turn,
            a=asked.a,
            b=asked.b,
            vote=sent.vote,
            voter=sent.voter.strip(),
            answers_hash=asked.pair.hash,
            time=now(),
        )
        votes.append(self.run_dir, vote)
        return _redirect("../next", voter=vote.voter, after=str(number))

    async def refused(self, request: Request, error: HTTPException) -> Response:
        return HTMLResponse(self.message(error.status_code), error.status_code)

    async def not_saved(self, request: Request, error: UserError) -> Response:
        return HTMLResponse(self.message(500, str(error)), 500)

    def message(self, status: int, text: str = "") -> str:
        """A page that says what went wrong."""
        template = self.environment.get_template("message.html.j2")
        return template.render(text=text or EXPLAINED.get(status, "That can't be done here."), status=status)

    def _asked(self, request: Request) -> tuple[int, BlindQuestion]:
        number = request.path_params["number"]
        if not 1 <= number <= len(self.questions):
            raise HTTPException(404)
        return number, self.questions[number - 1]

    def _judged(self, voter: str) -> dict[int, Vote]:
        """What this voter has said, by the question's number; a skipped one counts."""
        given, _ = votes.read(self.run_dir)
        holding = votes.latest(given, [asked.pair for asked in self.questions])
        found = {}
        for number, asked in enumerate(self.questions, 1):
            if vote := holding.get((voter, asked.pair.item_id, asked.pair.turn)):
                found[number] = vote
        return found

    def _page(self, template: str, **context: Any) -> Response:
        return HTMLResponse(self.environment.get_template(template).render(**context))


def _as_shown(vote: Vote, asked: BlindQuestion) -> Choice:
    """A vote by the sides that are shown now: another seed may have had them the other way round."""
    if vote.a == asked.a or vote.vote not in ("a", "b"):
        return vote.vote
    return "b" if vote.vote == "a" else "a"


async def _sent(request: Request) -> Sent:
    """The form of a request. Raises HTTPException 400 for anything that is none of ours."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(400)
    try:
        fields = parse_qs(body.decode("ascii"), strict_parsing=True, keep_blank_values=True, errors="strict")
        return Sent.model_validate({name: value for name, [value] in fields.items()})
    except (ValueError, ValidationError):  # no form, a field twice, an unknown choice, a name too long
        raise HTTPException(400) from None


def _voter(request: Request) -> str:
    voter = request.query_params.get("voter", "").strip()
    if len(voter) > MAX_NAME_CHARS:
        raise HTTPException(400)
    return voter


def _redirect(where: str, **parameters: str) -> Response:
    return RedirectResponse(f"{where}?{urlencode(parameters)}", 303)


def _environment() -> Environment:
    environment = templates("compare/templates")
    here = Path(__file__).parent / "templates"
    styles = [here.parents[1] / "report/templates/page.css", here / "page.css"]
    environment.globals["style"] = "\n".join(path.read_text(encoding="utf-8") for path in styles)
    environment.globals["script"] = (here / "page.js").read_text(encoding="utf-8")
    environment.globals["keys"] = [(key, label) for _, label, key in CHOICES]
    return environment

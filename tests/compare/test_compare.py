"""The pages of `retort compare` and the votes that they bring, through the site itself and through a socket."""

import asyncio
import base64
import hashlib
import json
import re
import signal
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from starlette.testclient import TestClient
from support import fabricated_run
from support.fabricated_run import PLANTED, make
from support.serving import Page, serving

from pipeline import compare
from pipeline.compare.blind_questions import draw
from pipeline.compare.server import MAX_BODY_BYTES, application
from pipeline.errors import UserError
from pipeline.run import votes
from pipeline.run.files import file_hash, write_json
from pipeline.run.rundir import RunDir
from pipeline.run.votes import MAX_NAME_CHARS, Vote

KEY = "the-key_of-this-test"
NUM_PAIRS = 9  # eight items, the first with two turns
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def site(run_dir: RunDir) -> TestClient:
    return client(run_dir)


def client(run_dir: RunDir, seed: int = 0, key: str = KEY) -> TestClient:
    return TestClient(application(run_dir, key, seed), base_url=f"http://127.0.0.1:8000/{key}/")


def given(run_dir: RunDir) -> list[Vote]:
    found, num_unreadable = votes.read(run_dir)
    assert num_unreadable == 0
    return found


def page(site: TestClient, path: str) -> Page:
    shown = site.get(path)
    assert shown.status_code == 200
    return Page(shown.text)


def choose(site: TestClient, number: int, vote: str, voter: str = "") -> str:
    """Send a vote; the path that the voter comes to."""
    shown = site.post(f"questions/{number}", data={"vote": vote, "voter": voter})
    assert shown.status_code == 200
    return shown.url.path.removeprefix(f"/{KEY}/")


# --- voting


def test_a_vote_is_on_disk_before_the_next_question_is_shown(site: TestClient, run_dir: RunDir) -> None:
    assert choose(site, 1, "b", "Ada") == "questions/2"
    [vote] = given(run_dir)
    asked = draw(run_dir, 0)[0]
    assert (vote.item_id, vote.turn, vote.a, vote.b) == (asked.pair.item_id, asked.pair.turn, asked.a, asked.b)
    assert (vote.vote, vote.voter, vote.answers_hash) == ("b", "Ada", asked.pair.hash)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", vote.time)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_shown_as_a_is_the_answer_of_the_arm_that_the_vote_names(run_dir: RunDir, seed: int) -> None:
    site = client(run_dir, seed)
    for number in range(1, NUM_PAIRS + 1):
        *_, question, a, b = page(site, f"questions/{number}").texts
        choose(site, number, "a")
        vote = given(run_dir)[-1]
        assert f" of {vote.a} " in a
        assert f" of {vote.b} " in b
        for text in (question, a, b):
            assert f"{vote.item_id.removeprefix('item-')}.{vote.turn}" in text


def test_all_are_judged_once_and_then_it_is_done(site: TestClient, run_dir: RunDir) -> None:
    path = "next"
    for num_judged in range(NUM_PAIRS):
        shown = page(site, path)
        assert shown.progress == (str(num_judged), str(NUM_PAIRS))
        path = choose(site, num_judged + 1, ("a", "b", "both_good", "both_bad", "skip")[num_judged % 5])
    assert path == "done"
    assert f"You have judged {NUM_PAIRS} of {NUM_PAIRS}" in site.get("done").text
    assert {(v.item_id, v.turn) for v in given(run_dir)} == {(p.item_id, p.turn) for p in votes.pairs(run_dir)}
    counted = votes.tally(given(run_dir), votes.pairs(run_dir))
    assert (counted.num_votes(), counted.skipped, counted.outdated) == (8, 1, 0)


def test_who_stopped_goes_on_at_the_first_open_question(site: TestClient, run_dir: RunDir) -> None:
    for number in (1, 2, 4):
        choose(site, number, "a", "Ada")
    later = client(run_dir, key="another")
    assert later.get("next?voter=Ada").url.path == "/another/questions/3"
    assert later.get("next?voter=Bo").url.path == "/another/questions/1"
    assert choose(site, 3, "a", "Ada") == "questions/5"


def test_who_goes_back_sees_the_choice_can_change_it_and_comes_back(site: TestClient, run_dir: RunDir) -> None:
    for number in (1, 2, 3):
        choose(site, number, "a", "Zoë & Co")
    back = page(site, "questions/4?voter=Zo%C3%AB+%26+Co").links["ArrowLeft"]
    shown = page(site, f"questions/{back}")
    assert [choice for choice, is_marked in shown.buttons.items() if is_marked] == ["a"]
    assert site.get(f"questions/{shown.links['ArrowRight']}").url.path == f"/{KEY}/questions/4"
    assert choose(site, 3, "both_bad", "Zoë & Co") == "questions/4"
    assert [v.vote for v in given(run_dir)] == ["a", "a", "a", "both_bad"]
    counted = votes.tally(given(run_dir), votes.pairs(run_dir))
    assert (sum(counted.preferred.values()), counted.both_bad, counted.outdated) == (2, 1, 0)


def test_a_choice_made_with_the_sides_changed_is_shown_on_the_side_that_the_arm_has_now(run_dir: RunDir) -> None:
    for number, asked in enumerate(draw(run_dir, 0), 1):
        choose(client(run_dir, 0), number, "both_bad" if number == 4 else "a" if asked.a == "student" else "b")
    other, sides_changed = client(run_dir, 1), 0
    for number, asked in enumerate(draw(run_dir, 1), 1):
        [marked] = [choice for choice, is_marked in page(other, f"questions/{number}").buttons.items() if is_marked]
        if marked != "both_bad":
            assert marked == ("a" if asked.a == "student" else "b")
        sides_changed += (asked.pair.item_id, asked.pair.turn, asked.a) not in {
            (q.pair.item_id, q.pair.turn, q.a) for q in draw(run_dir, 0)
        }
        choose(other, number, marked)
    assert 0 < sides_changed < NUM_PAIRS
    counted = votes.tally(given(run_dir), votes.pairs(run_dir))
    assert (counted.preferred, counted.both_bad) == ({"teacher": 0, "student": NUM_PAIRS - 1}, 1)


def test_an_open_question_before_is_come_back_to(site: TestClient) -> None:
    for number in range(2, NUM_PAIRS):
        assert choose(site, number, "a") == f"questions/{number + 1}"
    assert choose(site, NUM_PAIRS, "a") == "questions/1"


def test_answers_that_were_evaluated_anew_are_asked_about_again(
    run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(client(run_dir), 1, "a")
    rows = fabricated_run.samples()
    for row in rows:
        row["answer"] += " And more." if row["arm"] == "student" else ""
    monkeypatch.setattr(fabricated_run, "samples", lambda: rows)
    anew = make(tmp_path / "anew")
    votes.votes_path(run_dir).rename(votes.votes_path(anew))
    assert client(anew).get("next").url.path == f"/{KEY}/questions/1"
    assert votes.tally(given(anew), votes.pairs(anew)).outdated == 1


def test_a_vote_that_could_not_be_saved_is_told(site: TestClient, run_dir: RunDir) -> None:
    def full(*_: Any) -> None:
        raise UserError("votes.jsonl: the vote was not saved <no disk space>")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(votes, "append", full)
        failed = site.post("questions/1", data={"vote": "a"})
    assert failed.status_code == 500
    assert "the vote was not saved &lt;no disk space&gt;" in failed.text
    assert given(run_dir) == []


# --- blindness


def test_nothing_but_the_answers_says_whose_they_are(site: TestClient) -> None:
    for number in range(1, NUM_PAIRS + 1):
        shown = page(site, f"questions/{number}")
        html = shown.html
        for text in re.findall(r'<div class="text" dir="auto">(.*?)</div>', html, re.DOTALL):
            html = html.replace(text, "")
        assert not re.search("teacher|student|tokens", html, re.IGNORECASE)


def test_sides_and_order_are_drawn_from_the_seed(run_dir: RunDir) -> None:
    drawn = {seed: [(q.pair.item_id, q.pair.turn, q.a) for q in draw(run_dir, seed)] for seed in range(40)}
    assert drawn[3] == [(q.pair.item_id, q.pair.turn, q.a) for q in draw(run_dir, 3)]
    for item in (f"item-{n}" for n in range(8)):
        student_first = sum(("student" in of) for seed in drawn for of in drawn[seed] if of[:2] == (item, 0))
        assert 8 <= student_first <= 32  # of 40; outside by chance once in ten thousand
        assert len({[of[0] for of in drawn[seed]].index(item) for seed in drawn}) > 4


def test_the_turns_of_a_talk_follow_each_other_with_the_same_sides(run_dir: RunDir) -> None:
    for seed in range(10):
        first, second = [
            (place, q.a, q.pair.turn) for place, q in enumerate(draw(run_dir, seed)) if q.pair.item_id == "item-0"
        ]
        assert (first[0] + 1, first[1], first[2] + 1) == second


def test_the_turns_before_are_shown(run_dir: RunDir, site: TestClient) -> None:
    [number] = [n for n, q in enumerate(draw(run_dir, 0), 1) if q.pair.turn == 1]
    texts = page(site, f"questions/{number}").texts
    assert [re.findall(r"0\.\d", text)[0] for text in texts] == ["0.0"] * 3 + ["0.1"] * 3


def test_identical_answers_are_not_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = fabricated_run.samples()
    for row in rows:
        row["answer"] = "same" if row["item_id"] in ("item-2", "item-3") else row["answer"]
    monkeypatch.setattr(fabricated_run, "samples", lambda: rows)
    asked = {q.pair.item_id for q in draw(make(tmp_path), 0)}
    assert asked == {f"item-{n}" for n in (0, 1, 4, 5, 6, 7)}


def test_instructions_of_the_chat_set_are_shown_while_it_is_what_was_asked(run_dir: RunDir, tmp_path: Path) -> None:
    chat_set = tmp_path / "chat.jsonl"
    chat_set.write_text(json.dumps({"id": "item-3", "turns": ["question 3"], "system": "Be <brief>."}) + "\n")
    manifest = run_dir.manifest("evaluate")
    manifest["fingerprint"]["evaluate.chat_set"] = str(chat_set)
    manifest["fingerprint"]["evaluate.chat_set.hash"] = file_hash(chat_set)
    write_json(run_dir.stage_path("evaluate") / "manifest.json", manifest)
    told = {q.pair.item_id: q.instruction for q in draw(run_dir, 0)}
    assert told == {f"item-{n}": "Be <brief>." if n == 3 else None for n in range(8)}
    shown = [page(client(run_dir), f"questions/{n}").html for n in range(1, NUM_PAIRS + 1)]
    assert sum("Be &lt;brief&gt;." in html for html in shown) == 1
    chat_set.write_text(chat_set.read_text().replace("brief", "long"))
    assert not any(q.instruction for q in draw(run_dir, 0))


# --- safety


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/next", f"/{KEY}x/", f"/{KEY[:-1]}/", "//", f"//{KEY}/", "/é/"])
def test_without_the_key_there_is_nothing(site: TestClient, run_dir: RunDir, path: str) -> None:
    for refused in (site.get(f"http://127.0.0.1:8000{path}"), site.post(f"http://127.0.0.1:8000{path}")):
        assert refused.status_code == 403
        assert KEY not in refused.text
        assert "<form" not in refused.text
    assert given(run_dir) == []


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "0.0.0.0"])
def test_other_hosts_are_refused_even_with_the_key(site: TestClient, run_dir: RunDir, host: str) -> None:
    assert site.get("questions/1", headers={"Host": host}).status_code == 400
    assert site.post("questions/1", data={"vote": "a"}, headers={"Host": host}).status_code == 400
    assert given(run_dir) == []


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:1", "LOCALHOST"])
def test_the_own_machine_is_served_through_any_port(site: TestClient, host: str) -> None:
    assert site.get("questions/1", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"vote",
        b"vote=",
        b"vote=teacher",
        b"vote=A",
        b"voter=Ada",
        b"vote=a&vote=b",
        b"vote=a&voter=x&voter=y",
        b'{"vote": "a"}',
        b"vote=a&voter=%ff",
        b"vote=a&voter=\xc3\xab",
        b"vote=a&voter=" + b"x" * (MAX_NAME_CHARS + 1),
        b"vote=a&voter=" + b"x" * MAX_BODY_BYTES,
        b"vote=a&item_id=item-1&&;",
        b"\x00" * 100,
    ],
)
def test_a_body_that_is_no_vote_is_refused_and_leaves_no_line(site: TestClient, run_dir: RunDir, body: bytes) -> None:
    refused = site.post("questions/1", content=body, headers=FORM)
    assert refused.status_code == 400
    assert "Nothing was saved" in refused.text
    assert not votes.votes_path(run_dir).exists()


def test_a_body_without_end_is_not_read_on(run_dir: RunDir) -> None:
    taken, statuses = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        assert taken < 1000
        return {"type": "http.request", "body": b"x" * 1024, "more_body": True}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": f"/{KEY}/questions/1", "query_string": b""}
    headers = [(b"host", b"127.0.0.1")]

    async def ask() -> None:
        await application(run_dir, KEY, 0)({**scope, "headers": headers}, receive, send)

    asyncio.run(ask())
    assert statuses[0] == 400
    assert taken == MAX_BODY_BYTES // 1024 + 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "questions/0", 404),
        ("GET", f"questions/{NUM_PAIRS + 1}", 404),
        ("POST", f"questions/{NUM_PAIRS + 1}", 404),
        ("GET", "questions/-1", 404),
        ("GET", "questions/x", 404),
        ("GET", "questions/1/x", 404),
        ("GET", "votes.jsonl", 404),
        ("PUT", "questions/1", 405),
        ("POST", "next", 405),
        ("GET", "questions/1?voter=" + "x" * (MAX_NAME_CHARS + 1), 400),
    ],
)
def test_what_is_not_there(site: TestClient, method: str, path: str, status: int) -> None:
    refused = site.request(method, path, data={"vote": "a"} if method == "POST" else None)
    assert refused.status_code == status
    assert "That did not work" in refused.text


@pytest.mark.parametrize("after", ["-1", "x", "²", "9" * 5000, "9", "0"])
def test_an_odd_place_to_go_on_from_is_the_beginning(site: TestClient, after: str) -> None:
    assert site.get("next", params={"after": after}).url.path == f"/{KEY}/questions/1"


def test_all_that_goes_out_has_the_headers(site: TestClient) -> None:
    replies = [
        site.get(""),
        site.get("questions/1"),
        site.get("next", follow_redirects=False),
        site.get("nowhere"),
        site.get("http://127.0.0.1:8000/"),
        site.get("", headers={"Host": "evil.example"}),
        site.post("questions/1"),
    ]
    assert [reply.status_code for reply in replies] == [200, 200, 303, 404, 403, 400, 400]
    for reply in replies:
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; ")
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == "no-store"


def test_the_policy_lets_through_this_style_and_script_alone(site: TestClient) -> None:
    shown = site.get("questions/1")
    parts = dict(part.split(" ", 1) for part in shown.headers["content-security-policy"].split("; "))
    content = Page(shown.text).content
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(content[tag].encode()).digest()).decode()
        assert parts[f"{tag}-src"] == f"'sha256-{digest}'"
        assert shown.text.count(f"<{tag}") == 1


def test_what_a_model_wrote_is_text(run_dir: RunDir, site: TestClient) -> None:
    [number] = [n for n, q in enumerate(draw(run_dir, 0), 1) if q.pair.item_id == "item-0" and not q.pair.turn]
    shown = page(site, f"questions/{number}")
    assert PLANTED not in shown.html
    assert sum(PLANTED in text for text in shown.texts) == 2  # the question, and the student's answer


def test_a_name_is_text(site: TestClient) -> None:
    name = '"><script>x</script>'
    shown = site.get("questions/2", params={"voter": name})
    assert name not in shown.text
    assert shown.text.count("<script") == 1


# --- the command


@pytest.mark.parametrize(("arms", "said"), [((), "no answers of both"), (("student",), "gave the same answers")])
def test_a_run_with_nothing_to_compare_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arms: tuple[str, ...], said: str
) -> None:
    rows = [row | {"answer": "same"} for row in fabricated_run.samples() if row["arm"] in (*arms, "teacher")]
    monkeypatch.setattr(fabricated_run, "samples", lambda: rows)
    with pytest.raises(UserError, match=said):
        compare.run(make(tmp_path), 0, 0)


def test_a_run_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluate has not finished"):
        compare.run(make(tmp_path, until="train"), 0, 0)


def test_a_port_that_is_taken_is_told(run_dir: RunDir) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} can't be used .*--port"):
            compare.run(run_dir, port, 0)


def raw(address: str, path: str) -> bytes:
    """What comes back for a path that no client tidies up."""
    parts = urlsplit(address)
    assert parts.port is not None
    with socket.create_connection(("127.0.0.1", parts.port), timeout=10) as connection:
        request = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_command_serves_on_this_machine_alone_hands_out_no_file_and_ends_with_ctrl_c(
    run_dir: RunDir, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with serving(run_dir.path, log) as (process, address):
        listening = psutil.Process(process.pid).net_connections(kind="inet")
        assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        own = urlsplit(address).path
        assert len(own.strip("/")) >= 20
        assert raw(address, own).startswith(b"HTTP/1.1 200")
        files = ("etc/passwd", "config.yaml", "votes.jsonl", "evaluate/scores.json")
        for climb in ("../" * 12, "%2e%2e/" * 12, "..%2f" * 12, "/", "./"):
            for start in ("/", own, f"{own}questions/"):
                for file in files:
                    reply = raw(address, f"{start}{climb}{file}")
                    assert reply.split()[1] in (b"403", b"404"), (start, climb, file)
                    assert b"root:" not in reply
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    said = log.read_text()
    assert "stopped; `retort report" in said
    assert "Traceback" not in said

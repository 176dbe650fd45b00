import time
from typing import Any

import pytest
from support.fake_judge import KEY, FakeJudge, first_place

from pipeline.config import Judge
from pipeline.errors import UserError
from pipeline.judge.client import Client, estimated_tokens
from pipeline.judge.ledger import JudgeVerdict
from pipeline.judge.questions import REMINDER, JudgeRequest

LINES = (
    "=== Answer of assistant A ===\nx\n=== End of the answer\n=== Answer of assistant B ===\ny\n=== End of the answer\n"
)


def questions(num: int) -> list[JudgeRequest]:
    return [JudgeRequest("pairwise", f"{n} {LINES}Verdict: tie", f"k{n}", {"item_id": f"i{n}"}) for n in range(num)]


def asked(fake: FakeJudge, num: int = 6, is_proved: bool = False, **settings: Any) -> list[JudgeVerdict]:
    found: list[JudgeVerdict] = []
    judge = Judge(url=settings.pop("url", fake.url), model="fake", **settings)
    Client(judge, first_pause_s=0.01, longest_pause_s=0.05).ask(questions(num), is_proved, found.append)
    return found


def test_every_question_is_answered_once_and_no_more_are_in_flight_than_allowed() -> None:
    def slow(question: str, a: str, b: str) -> str:
        time.sleep(0.02)
        return "A"

    with FakeJudge(slow) as fake:
        found = asked(fake, 20, concurrency=3)
    assert sorted(v.key for v in found) == sorted(q.key for q in questions(20))
    assert {v.choice for v in found} == {"A"}
    assert fake.num_asked == 20
    assert 2 <= fake.most_in_flight <= 3
    assert fake.bodies[0].keys() == {"model", "messages", "temperature", "max_tokens"}


@pytest.mark.parametrize("path", ["/v1", "/v1/", "", "/"])
def test_an_address_is_taken_with_and_without_its_path(path: str) -> None:
    with FakeJudge(first_place) as fake:
        assert len(asked(fake, 1, url=fake.url + path)) == 1


def test_a_request_is_as_the_user_wants_it() -> None:
    with FakeJudge(first_place) as fake:
        asked(fake, 1, request={"max_tokens": None, "max_completion_tokens": 9, "temperature": None})
    assert fake.bodies[0].keys() == {"model", "messages", "max_completion_tokens"}


def test_faults_that_pass_are_waited_out() -> None:
    with FakeJudge(first_place) as fake:
        fake.faults.extend(["503", "429", "drop", "500", "html", "shape"])
        found = asked(fake, 4, concurrency=1)
    assert [v.choice for v in found] == ["A"] * 4
    assert fake.num_asked == 10


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("html", "no chat completion"),
        ("shape", "no chat completion (choices: "),
        ("500", "HTTP 500"),
        ("404", "HTTP 404"),
        ("400", "HTTP 400"),
        ("302", "HTTP 302"),
    ],
)
def test_an_endpoint_that_is_none_is_one_line(fault: str, said: str) -> None:
    with FakeJudge(first_place, always=fault) as fake, pytest.raises(UserError) as caught:
        asked(fake)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert fake.num_asked <= 5  # of one question: the others are not sent


@pytest.mark.parametrize("always", ["503", "429", "drop"])
def test_patience_has_an_end(always: str) -> None:
    began = time.monotonic()
    with FakeJudge(first_place, always=always) as fake, pytest.raises(UserError, match="does not answer"):
        asked(fake, patience_s=0.4, is_proved=True)
    assert 0.3 < time.monotonic() - began < 30


def test_where_nothing_listens_it_is_said() -> None:
    with FakeJudge(first_place) as fake:
        gone = fake.url
    with pytest.raises(UserError, match=r"no connection: ConnectError.*evaluate\.judge\.url"):
        asked(fake, url=gone, patience_s=0.2)


def test_a_reply_that_takes_too_long_is_asked_for_again() -> None:
    slept: list[float] = []

    def sleepy(question: str, a: str, b: str) -> str:
        if not slept:
            slept.append(1.0)
            time.sleep(1.0)
        return "B"

    with FakeJudge(sleepy) as fake:
        assert [v.choice for v in asked(fake, 1, timeout_s=0.3)] == ["B"]
        assert fake.num_asked == 2


def test_a_key_is_sent_and_one_that_is_refused_is_one_line_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with FakeJudge(first_place, needs_key=True) as fake:
        assert len(asked(fake, key_variable="MY_KEY")) == 6
        monkeypatch.setenv("MY_KEY", "wrong-key-of-some-length")
        with pytest.raises(UserError, match=r"refuses the key.*MY_KEY") as caught:
            asked(fake, key_variable="MY_KEY")
        assert "wrong-key" not in str(caught.value)
        monkeypatch.setenv("MY_KEY", "two words")
        with pytest.raises(UserError, match="no space") as caught:
            asked(fake, key_variable="MY_KEY")
        assert "two words" not in str(caught.value)


def test_a_key_that_the_server_repeats_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_JUDGE_KEY", KEY)
    with FakeJudge(first_place, always="echo") as fake, pytest.raises(UserError, match=r"\(the key\)") as caught:
        asked(fake)
    assert KEY not in str(caught.value)
    with FakeJudge(lambda question, a, b: f"A\n{KEY}") as fake:
        assert all(KEY not in v.reply for v in asked(fake, 1, retries=0))


def test_what_can_not_be_read_is_asked_again_with_a_reminder_and_then_invalid() -> None:
    with FakeJudge(first_place, garbage_frac=1.0) as fake:
        [found] = asked(fake, 1, retries=2)
    assert (found.choice, found.tries, found.prompt_tokens, found.completion_tokens) == (None, 3, 300, 30)
    assert [len(body["messages"]) for body in fake.bodies] == [1, 3, 3]
    assert fake.bodies[2]["messages"][2] == {"role": "user", "content": REMINDER}
    assert [m["role"] for m in fake.bodies[1]["messages"]] == ["user", "assistant", "user"]


def test_one_question_that_is_refused_is_invalid_and_the_others_are_judged() -> None:
    with FakeJudge(first_place, refuses="3 ===") as fake:
        found = {v.key: v for v in asked(fake)}
        assert (found["k3"].choice, found["k3"].tries) == (None, 0)
        assert "too long" in found["k3"].reply
        assert [v.choice for key, v in found.items() if key != "k3"] == ["A"] * 5
    with FakeJudge(first_place, refuses="===") as fake, pytest.raises(UserError, match=r"refuses .*: .*too long"):
        asked(fake)


def test_tokens_are_estimated_where_the_server_does_not_tell() -> None:
    with FakeJudge(first_place, usage=None) as fake:
        [found] = asked(fake, 1)
    assert found.prompt_tokens == estimated_tokens(questions(1)[0].text)
    assert found.completion_tokens == estimated_tokens(found.reply)
    assert 90 <= estimated_tokens("four" * 100) <= 110


def test_an_error_of_the_taker_stops_the_rest() -> None:
    def take(verdict: JudgeVerdict) -> None:
        raise UserError("enough")

    with FakeJudge(first_place) as fake:
        with pytest.raises(UserError, match="enough"):
            Client(Judge(url=fake.url, model="fake", concurrency=2)).ask(questions(50), True, take)
        assert fake.num_asked <= 5

"""The teacher on servers: every answer once and right, whatever a server does; and one line where nothing helps."""

import gc
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_server import KEY, VOCAB, FakeServer, best, drawn, logprobs_of

from pipeline import config as config_module
from pipeline.errors import UserError
from pipeline.inference import servers as server_module
from pipeline.inference.engine import Completion, Request
from pipeline.inference.servers import TeacherServers
from pipeline.inference.servers.pool import Pauses

K, MAX_TOKENS = 6, 5
SHORT = Pauses(first_s=0.01, longest_s=0.05)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server_module.KEY, KEY)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for module in ("pipeline.inference.servers", "pipeline.inference.servers.pool"):
        monkeypatch.setattr(f"{module}.say", lines.append)
    return lines


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


def teacher(*fakes: FakeServer, k: int = K, **settings: Any) -> TeacherServers:
    limits = {"timeout_s": 5.0, "patience_s": 5.0, "concurrency": 4, **settings}
    return TeacherServers(config_module.Server(urls=tuple(f.url for f in fakes), **limits), VOCAB, k, SHORT)


def requests(num: int, k: int = K) -> list[Request]:
    return [Request(f"r{n}", [2, 3 + n], MAX_TOKENS, 1.0, seed=n, k=k) for n in range(num)]


def assert_right(answers: list[Completion], num: int) -> None:
    """Each request once, each with the tokens and the K best of the made-up model, best first."""
    assert sorted(a.request.request_id for a in answers) == sorted(f"r{n}" for n in range(num))
    for a in answers:
        prompt = a.request.prompt_token_ids
        assert a.token_ids == drawn(prompt, a.request.seed, MAX_TOKENS)
        for t, token in enumerate(a.token_ids):
            wanted_V = logprobs_of(prompt + a.token_ids[:t])
            assert a.ids_TK[t].tolist() == best(wanted_V, a.request.k)
            np.testing.assert_allclose(a.logprobs_TK[t], np.sort(wanted_V)[::-1][: a.request.k], rtol=1e-6)
            assert a.token_logprobs[t] == pytest.approx(wanted_V[token])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("cuts_at_asked", [False, True])
def test_the_k_best_are_whole_though_the_sampled_token_takes_a_place(fake: FakeServer, cuts_at_asked: bool) -> None:
    fake.cuts_at_asked = cuts_at_asked
    answers = list(teacher(fake).answers(requests(20)))
    assert_right(answers, 20)
    outside = sum(t not in row for a in answers for t, row in zip(a.token_ids, a.ids_TK, strict=True))
    assert outside > 20, "few sampled tokens were outside the K best: this proved little"


def test_k_may_be_the_whole_vocabulary(fake: FakeServer) -> None:
    fake.max_logprobs = VOCAB
    assert_right(list(teacher(fake, k=VOCAB).answers(requests(3, k=VOCAB))), 3)


def test_what_servers_say_of_themselves(fake: FakeServer) -> None:
    server = teacher(fake, concurrency=3)
    assert server.served == server_module.ServerIdentity("vllm 1.2.3", "fake", 64, "fake-64")
    assert (server.vocab_size, server.max_model_len, server.dtype, server.max_num_seqs) == (VOCAB, 64, "", 3)


@pytest.mark.parametrize(
    "fault", ["429", "500", "503", "garbage", "shape", "short", "aborted", "drop", "truncated", "hang"]
)
def test_after_a_fault_each_answer_comes_once_and_right(fake: FakeServer, fault: str, said: list[str]) -> None:
    server = teacher(fake, timeout_s=2.0 if fault == "hang" else 30.0)
    fake.faults.extend([fault] * 3)
    assert_right(list(server.answers(requests(12))), 12)
    assert not fake.faults
    if fault != "hang":  # a slow machine may answer after the time-out, and again
        assert set(fake.answered.values()) == {1}
    assert "requests were sent again" in said[-1]


def test_faults_of_all_kinds_at_once(fake: FakeServer) -> None:
    server = teacher(fake, timeout_s=2.0)
    fake.faults.extend(["500", "garbage", "", "drop", "", "truncated", "429", "", "", "hang"] * 3)
    assert_right(list(server.answers(requests(40))), 40)


def test_retry_after_is_waited_for(fake: FakeServer) -> None:
    fake.retry_after = "1"
    server = teacher(fake, concurrency=1)
    fake.faults.append("429")
    assert_right(list(server.answers(requests(2))), 2)
    assert fake.asked_at[1] - fake.asked_at[0] >= 1


def test_the_pauses_double_up_to_the_longest_and_vary() -> None:
    pauses = Pauses(first_s=0.5, longest_s=30)
    for failures, full in ((1, 0.5), (2, 1.0), (4, 4.0), (7, 30.0), (5000, 30.0)):
        drawn_s = [pauses.after(failures) for _ in range(200)]
        assert full / 2 <= min(drawn_s) < max(drawn_s) <= full
        assert max(drawn_s) - min(drawn_s) > full / 4


def test_a_url_that_dies_is_taken_out_and_comes_back(fake: FakeServer, said: list[str]) -> None:
    other = FakeServer().__enter__()
    server = teacher(fake, other)
    fake.delay_s = 0.05
    answers = server.answers(requests(120))
    got = [next(answers) for _ in range(10)]
    other.__exit__()
    got += [next(answers) for _ in range(30)]
    before = sum(other.answered.values())
    with FakeServer(port=other.port) as revived:
        got += list(answers)
        assert revived.answered, "it was not asked again"
    assert before > 0
    assert_right(got, 120)
    assert [line.split(": ")[1] for line in said[:2]] == ["taken out", "answers again"]
    assert all(line.startswith(other.url) for line in said[:2])


def test_one_of_two_that_never_answers_does_not_hold_up_the_other(fake: FakeServer, said: list[str]) -> None:
    dead = FakeServer(port=free_port())
    assert_right(list(teacher(dead, fake, patience_s=10).answers(requests(30))), 30)
    assert next(line for line in said if dead.url in line).startswith(f"{dead.url}: taken out: no connection")


def test_a_server_that_is_still_starting_is_waited_for() -> None:
    import threading

    fake = FakeServer(port=free_port())
    threading.Timer(0.3, fake.__enter__).start()
    assert_right(list(teacher(fake).answers(requests(4))), 4)
    fake.__exit__()


def test_no_server_at_all_is_one_line_after_a_while() -> None:
    fake = FakeServer(port=free_port())
    with pytest.raises(
        UserError, match=rf"no server answers \({fake.url}: no connection\), and none has for .* s .*same command again"
    ):
        teacher(fake, patience_s=0.3)


def test_servers_that_die_for_good_end_the_run(fake: FakeServer) -> None:
    other = FakeServer().__enter__()
    answers = teacher(other, patience_s=2).answers(requests(50))
    next(answers)
    other.__exit__()
    with pytest.raises(UserError, match="no server answers"):
        list(answers)


def test_a_server_that_is_fit_but_busy_for_ever_ends_the_run(fake: FakeServer) -> None:
    server = teacher(fake, patience_s=2, timeout_s=2)
    fake.always = "429"
    with pytest.raises(UserError, match=r"no server answers.*HTTP 429"):
        list(server.answers(requests(3)))


def test_a_request_that_always_fails_is_named_while_others_are_answered(fake: FakeServer) -> None:
    fake.poison = [2, 3 + 7]
    got = []
    with pytest.raises(UserError, match=r"r7: failed 10 times.*HTTP 500"):
        got.extend(teacher(fake).answers(requests(30)))
    assert fake.answered.total() >= 20


def test_a_refused_request_is_told_in_the_servers_words(fake: FakeServer) -> None:
    server = teacher(fake)
    fake.faults.append("400")
    with pytest.raises(UserError, match=r"HTTP 400: no such thing \(r\d\)"):
        list(server.answers(requests(5)))


def test_a_wrong_key_is_told_and_not_repeated(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server_module.KEY, "not-the-key")
    with pytest.raises(UserError, match="set RETORT_SERVER_KEY") as caught:
        teacher(fake)
    assert "not-the-key" not in str(caught.value)


def test_a_server_that_changes_prompts_is_refused(fake: FakeServer) -> None:
    server = teacher(fake)
    fake.adds_bos = True
    with pytest.raises(UserError, match=r"r0: the server answered another prompt .* \(3 token ids came back for 2\)"):
        list(server.answers(requests(1)))
    with pytest.raises(UserError, match="changes prompts"):
        teacher(fake)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_logprobs": K}, rf"max allowed: {K} \(start it with --max-logprobs {K + 1} or more\)"),
        ({"is_processed": True}, "--logprobs-mode raw_logprobs"),
        ({"models": ["a", "b"]}, r"several models or none \(a, b\): name one with teacher.server.model"),
        ({"models": []}, r"several models or none \(none\)"),
    ],
)
def test_an_unfit_server_is_refused_with_what_to_do(settings: dict[str, Any], message: str) -> None:
    with FakeServer(**settings) as fake, pytest.raises(UserError, match=message):
        teacher(fake)


def test_one_of_several_models_can_be_named() -> None:
    with FakeServer(models=["a", "b"]) as fake:
        assert teacher(fake, model="b").served.model == "b"
        with pytest.raises(UserError, match="serves no c, only a, b"):
            teacher(fake, model="c")


def test_servers_that_differ_are_refused(fake: FakeServer) -> None:
    with FakeServer(max_model_len=32) as other, pytest.raises(UserError, match="max_model_len"):
        teacher(fake, other)


def test_a_server_that_comes_back_as_another_is_refused() -> None:
    fake = FakeServer().__enter__()
    answers = teacher(fake).answers(requests(200))
    next(answers)
    fake.__exit__()
    with FakeServer(port=fake.port, max_model_len=32), pytest.raises(UserError, match="max_model_len 32, before 64"):
        list(answers)


def test_another_models_tokens_are_refused(fake: FakeServer) -> None:
    server = teacher(fake)
    fake.tokens_beyond = VOCAB
    with pytest.raises(UserError, match="beyond the vocabulary of 40"):
        list(server.answers(requests(1)))


def test_requests_are_read_no_further_ahead_than_are_in_flight(fake: FakeServer) -> None:
    taken = 0

    def many() -> Iterator[Request]:
        nonlocal taken
        for request in requests(100):
            taken += 1
            yield request

    answers = teacher(fake, concurrency=4).answers(many())
    next(answers)
    assert taken <= 2 * 4
    assert 1 + sum(1 for _ in answers) == 100


def test_an_abandoned_round_leaves_nothing_open(fake: FakeServer) -> None:
    server = teacher(fake)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = server.answers(requests(30))
        next(answers)
        del answers  # closes it
        gc.collect()
    assert_right(list(server.answers(requests(8))), 8)


def test_a_prompt_beyond_the_context_is_refused_by_name(fake: FakeServer) -> None:
    long = Request("long-one", [5] * 64, 4, 0.0, 0)
    with pytest.raises(UserError, match=r"long-one.*64 \(--max-model-len\)"):
        list(teacher(fake).answers([long]))


def test_a_context_that_would_cut_answers_short_is_refused(fake: FakeServer) -> None:
    server = teacher(fake)
    (answer,) = server.answers([Request("r", [2, 3], 62, 1.0, 0, k=K)])
    assert len(answer.token_ids) == 62
    with pytest.raises(UserError, match="exceed the server's context of 64"):
        list(server.answers([Request("r", [2, 3], 63, 1.0, 0, k=K)]))


@pytest.mark.parametrize("key", ["sesame\n", "open sesame", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_told_at_once(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(server_module.KEY, key)
    with pytest.raises(UserError, match="printable ASCII") as caught:
        teacher(fake)
    assert key.strip() not in str(caught.value)


def test_text_that_exists_is_scored(fake: FakeServer) -> None:
    completion = drawn([2, 3], 0, MAX_TOKENS)
    asked = Request("r", [2, 3], 1, 0.0, 0, k=K, completion_token_ids=tuple(completion))
    (scored,) = teacher(fake).answers([asked])
    (captured,) = teacher(fake).answers(requests(1))
    assert scored.token_ids == captured.token_ids == completion
    assert scored.finish_reason == "stop"
    np.testing.assert_array_equal(scored.ids_TK, captured.ids_TK)
    np.testing.assert_allclose(scored.logprobs_TK, captured.logprobs_TK, rtol=1e-6)
    np.testing.assert_allclose(scored.token_logprobs, captured.token_logprobs, rtol=1e-6)


def test_without_log_probs_there_are_only_tokens(fake: FakeServer) -> None:
    answers = list(teacher(fake, k=0).answers(requests(3, k=0)))
    assert [a.ids_TK.shape for a in answers] == [(MAX_TOKENS, 0)] * 3


def test_time_runs_from_the_request(fake: FakeServer) -> None:
    fake.delay_s = 0.2
    began = time.perf_counter()
    (answer,) = teacher(fake).answers(requests(1))
    assert 0.2 <= answer.total_s <= time.perf_counter() - began


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", "each is written like"),
        ("ftp://a:1", "each is written like"),
        ("http://", "each is written like"),
        ("http://a:80x", "each is written like"),
        ("http://a/v1?key=b", "each is written like"),
        ("http://me:hunter2@a:8000", "no name or password"),
    ],
)
def test_urls_are_checked_and_passwords_not_repeated(url: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(f"teacher: {{server: {{urls: ['{url}']}}}}")
    with pytest.raises(UserError, match=message) as caught:
        config_module.load(path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://a:8000", "http://a:8000/", "http://a:8000/v1", "http://a:8000/v1/"])
def test_urls_may_end_in_v1(url: str) -> None:
    assert config_module.Server(urls=(url,)).urls == ("http://a:8000",)


def test_the_same_url_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        config_module.Server(urls=("http://a:8000", "http://a:8000/v1"))


def test_a_client_that_is_busy_takes_no_server_for_dead(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(server_module, "IDLE_S", 0.01)  # so that every request connects anew
    server, answers = teacher(fake, concurrency=8, timeout_s=1.0), []
    for number, answer in enumerate(server.answers(requests(30))):
        answers.append(answer)
        fake.delay_s = 0.1 * (number % 3)  # so that some are under way at any time
        if number in (5, 12):
            time.sleep(1.3)  # as when it packs a shard
    assert_right(answers, 30)
    assert set(fake.answered.values()) == {1}
    assert not said

"""A served model's process, its engine in place of vLLM's a few lines of Python: answers, errors, and its end."""

import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.fake_server import KEY, FakeServer, drawn
from support.processes import survivors

from pipeline import config as config_module
from pipeline.errors import UserError
from pipeline.inference import child_engine
from pipeline.inference.child_engine import ChildEngine
from pipeline.inference.kv_cache import Load

NOTHING_KNOWN = '{"num_requests": null, "tokens": null, "memory_bytes": null}'
ECHO = """
import json, sys
print(json.dumps({"context_tokens": 99, "start_s": 1.5}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    answers = [{"request_id": r["request_id"], "arguments": sys.argv[1:]} for r in reversed(asked["requests"])]
    print(json.dumps({"answers": answers, "elapsed_s": 0.0}), flush=True)
"""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(child_engine, "COMMAND", (sys.executable, "-c", ECHO))
    return monkeypatch


def test_answers_come_in_the_order_of_the_questions(process: pytest.MonkeyPatch) -> None:
    with ChildEngine("it", "model", {"dtype": "float32"}, Load()) as model:
        replies = model.ask([{"request_id": "a"}, {"request_id": "b"}])["answers"]
        assert [reply["request_id"] for reply in replies] == ["a", "b"]
        assert replies[0]["arguments"] == ["model", '{"dtype": "float32"}', NOTHING_KNOWN]
        assert model.context_tokens == 99


def test_servers_are_handed_on_where_there_are_any(process: pytest.MonkeyPatch) -> None:
    servers = config_module.Server(urls=("http://127.0.0.1:8000",))
    for server, num_arguments in ((servers, 4), (config_module.Server(), 3), (None, 3)):
        with ChildEngine("it", "model", {}, Load(), server) as model:
            [reply] = model.ask([{"request_id": "a"}])["answers"]
        assert len(reply["arguments"]) == num_arguments


def test_a_process_that_dies_is_told_by_name_with_its_code(process: pytest.MonkeyPatch) -> None:
    process.setattr(child_engine, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with ChildEngine("the teacher", "model", {}, Load()) as model, pytest.raises(UserError) as caught:
        model.ask([{"request_id": "a"}])
    assert str(caught.value) == "the vLLM process of the teacher ended with code 3; see its messages above"


def test_a_process_that_the_system_killed_ran_out_of_memory(process: pytest.MonkeyPatch) -> None:
    process.setattr(child_engine, "COMMAND", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    with ChildEngine("the teacher", "model", {}, Load()) as model, pytest.raises(UserError, match="memory ran out"):
        model.wait_until_ready()


def test_what_the_process_says_went_wrong_is_told(process: pytest.MonkeyPatch) -> None:
    process.setattr(
        child_engine, "COMMAND", (sys.executable, "-c", f"print({json.dumps(json.dumps({'error': 'no room'}))})")
    )
    with (
        ChildEngine("the teacher", "model", {}, Load()) as model,
        pytest.raises(UserError, match=r"^the teacher: no room$"),
    ):
        model.wait_until_ready()


def test_it_ends_with_the_block_also_where_that_fails(process: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        with ChildEngine("it", "model", {}, Load()) as model:
            model.wait_until_ready()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not [child for child in psutil.Process(os.getpid()).children() if ECHO in child.cmdline()]


def test_the_engines_own_processes_end_with_it_where_the_block_fails(process: pytest.MonkeyPatch) -> None:
    """On a GPU vLLM's engine is a process below ours, and does not look whether ours is there."""
    engine = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])\n"
    process.setattr(child_engine, "COMMAND", (sys.executable, "-c", engine + ECHO))
    began, below = time.monotonic(), list[psutil.Process]()

    def fail() -> None:
        with ChildEngine("it", "model", {}, Load()) as model:
            model.wait_until_ready()
            below.extend(psutil.Process(model.pid).children())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(below) == 1
    assert not survivors(below, 10)
    assert time.monotonic() - began < 15  # it holds the pipe of answers, whose end is waited for


def test_the_servers_of_the_teacher_answer_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_SERVER_KEY", KEY)
    (tmp_path / "config.json").write_text('{"vocab_size": 40}')
    request = {"request_id": "a", "prompt_token_ids": [5, 6], "max_tokens": 4, "temperature": 1.0, "seed": 7}
    with FakeServer() as fake:
        servers = config_module.Server(urls=(fake.url,))
        with ChildEngine("the teacher", str(tmp_path), {}, Load(), servers) as model:
            [answer] = model.ask([request])["answers"]
    assert model.context_tokens == 64
    assert answer["token_ids"] == drawn([5, 6], 7, 4)


def test_a_server_that_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_SERVER_KEY", "wrong")
    (tmp_path / "config.json").write_text('{"vocab_size": 40}')
    with FakeServer() as fake:
        servers = config_module.Server(urls=(fake.url,))
        refused = ChildEngine("the teacher", str(tmp_path), {}, Load(), servers)
        with refused as model, pytest.raises(UserError, match=r"the teacher: .*refuses the key"):
            model.wait_until_ready()

"""`retort serve` and a real vLLM server: the engine's answers over HTTP, through faults, and after a kill."""

import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import commands
from support.commands import ROOT
from support.faulty_proxy import LATE_S, FaultyProxy
from support.processes import survivors
from support.real_engine import ENGINE, K

from pipeline import codec
from pipeline import config as config_module
from pipeline.errors import UserError
from pipeline.inference import http_server, kv_cache, serve
from pipeline.inference.engine import Completion, Engine, Request
from pipeline.inference.kv_cache import Load
from pipeline.inference.servers import KEY, TeacherServers
from pipeline.models import lookup
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.run.files import file_hash

RETORT = [sys.executable, "-m", "pipeline"]
SECRET = "a-key-for-tests"
QUICKSTART = "configs/quickstart.yaml"
MAX_TOKENS, SAME_NATS = 24, 1e-3
NUM_PROMPTS = 24
QUESTIONS = ["What is the capital of France?", "Name three fruits.", "Write a line about rain.", "Is ice cold?"]
SETTINGS = [
    f"prepare.max_prompts={NUM_PROMPTS}",
    "generate.max_tokens=24",
    "generate.k=16",
    "generate.temperature=0",  # what was drawn can't tell one server from another: the best token is
    "generate.shard_responses=4",
    "teacher.server.concurrency=6",
    "teacher.server.timeout_s=60",  # a busy machine may take its time
]


class Served:
    """`retort serve` in a process of its own, ready."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        environment = {**os.environ, KEY: SECRET}
        command = [
            sys.executable,
            "-m",
            "pipeline",
            "serve",
            QUICKSTART,
            "--port",
            str(port),
            f"teacher.engine={ENGINE}",
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        self.said = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if line.startswith("retort run"):
                return
        raise AssertionError(f"no server: {self.said}")

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def end(self, number: signal.Signals) -> None:
        """Send a signal to `retort serve`; nothing of it may be left."""
        everyone = self.processes()
        assert len(everyone) >= 3, "retort serve, vLLM's server, its engine"
        self.process.send_signal(number)
        alive = survivors(everyone, timeout=100)
        for process in alive:
            process.kill()
        assert not alive, f"left after {number.name}: {alive}"


def retort(*arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.retort(*arguments, timeout=600, **{KEY: SECRET})


def responses(run: Path) -> dict[str, dict[str, Any]]:
    rows = pa.concat_tables(pq.read_table(path) for path in sorted((run / "generate").glob("*.parquet"))).to_pylist()
    by_id = {row["response_id"]: row for row in rows}
    assert len(by_id) == len(rows) == NUM_PROMPTS
    return by_id


def assert_same(some: dict[str, dict[str, Any]], others: dict[str, dict[str, Any]]) -> None:
    assert some.keys() == others.keys()
    for name, row in some.items():
        assert row["token_ids"] == others[name]["token_ids"]
        np.testing.assert_allclose(row["token_logprobs"], others[name]["token_logprobs"], atol=SAME_NATS)


# --- what needs no vLLM


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="choose another with --port"):
            serve._check_port(other.getsockname()[1])


def test_without_a_terminal_a_key_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with pytest.raises(UserError, match=f"set {KEY} in the environment"):
        serve._key()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    (first, is_new), (second, _) = serve._key(), serve._key()
    assert is_new
    assert first != second
    assert len(first) >= 32
    monkeypatch.setenv(KEY, "mine")
    assert serve._key() == ("mine", False)


def test_the_key_is_in_the_environment_and_in_no_flag(demo_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_module.load(ROOT / QUICKSTART, ["generate.k=200"])
    started: dict[str, Any] = {}

    class Process:
        pid, stderr = 0, io.BytesIO()

        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            started.update(command=command, env=env)

    monkeypatch.setattr(http_server.subprocess, "Popen", Process)
    monkeypatch.setattr(http_server, "_stop", lambda process: None)
    monkeypatch.setattr(http_server, "becomes_healthy", lambda *_: True)
    settings = serve.engine(config, lookup.Model("demo", demo_teacher))
    with http_server.running("demo", settings, 8000, "k-e-y", Load()):
        listed = started["command"]
    assert started["env"]["VLLM_API_KEY"] == "k-e-y"
    assert "k-e-y" not in " ".join(listed)
    assert {"--host=127.0.0.1", "--served-model-name=demo", "--logprobs-mode=raw_logprobs"} <= set(listed)
    assert "--max-logprobs=201" in listed, "one more than K"


def test_a_server_whose_cache_vllm_refuses_is_tried_with_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server's place is taken by a script that ends as vLLM's does, and at 1 GiB stays up."""
    vllm = tmp_path / "vllm"
    refusal = "(5.75/7.59 GiB) on kv cache allocation is less than requested memory for kv (2.0 GiB). Decrease"
    vllm.write_text(
        f"""#!/bin/sh
echo $@ >> {tmp_path}/asked
case "$@" in *--kv-cache-memory-bytes={1 << 30}*) exec sleep 100;; esac
echo "ValueError: Available memory on node 0 {refusal}" >&2
exit 1
"""
    )
    vllm.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(vllm))
    monkeypatch.setattr(kv_cache, "size", lambda *_: kv_cache.Cache(4 << 30, 1 << 20, 9))
    monkeypatch.setattr(kv_cache, "_make_room", lambda *_: None)
    monkeypatch.setattr(httpx, "get", lambda *_, **__: _answers_once_up(tmp_path / "asked", tries=3))
    with http_server.running("demo", {"model": "m"}, 8000, "k-e-y", Load()) as process:
        assert process.poll() is None
    assert process.poll() is not None
    assert len((tmp_path / "asked").read_text().splitlines()) == 3
    assert "vLLM finds 5.75 of 7.59 GiB free on memory node 0" in capfd.readouterr().err


def _answers_once_up(asked: Path, tries: int) -> httpx.Response:
    is_up = asked.exists() and len(asked.read_text().splitlines()) >= tries
    return httpx.Response(200 if is_up else 503)


def test_what_a_killed_server_leaves_is_stopped_too() -> None:
    process = subprocess.Popen(["sh", "-c", "sleep 100 & wait"], start_new_session=True)
    while not (left := psutil.Process(process.pid).children()):
        time.sleep(0.01)
    process.kill()
    http_server._stop(process)
    assert not survivors(left, timeout=5)


def test_a_server_that_neither_answers_nor_ends_is_given_up_and_stopped(
    demo_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = tmp_path / "hangs"
    hangs.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 100\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hangs))
    monkeypatch.setattr(http_server, "START_S", 1.0)
    monkeypatch.setenv(KEY, SECRET)
    config = config_module.load(ROOT / QUICKSTART, [f"teacher.model={demo_teacher}", "teacher.engine={}"])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(UserError, match=r"has not answered on 127\.0\.0\.1:\d+ in 0 minutes, and was stopped"):
            serve.run(config, http_server.free_port(), "")
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


# --- what does


@pytest.mark.engine
def test_vllm_reads_the_flags_as_the_engine_reads_the_settings() -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    settings: dict[str, Any] = {
        **ENGINE,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "quantization": None,
        "gpu_memory_utilization": 0.5,
        "hf_overrides": {"rope_scaling": {"factor": 2.0}, "name": "it's"},
        "logits_processors": ["a:b", "c:d"],
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }
    parser = make_arg_parser(FlexibleArgumentParser())
    arguments = parser.parse_args([*http_server.QUIET, *http_server.as_flags(settings)])
    assert arguments is not None
    read = EngineArgs.from_cli_args(arguments)
    direct = EngineArgs(**settings)
    assert {name: getattr(read, name) for name in settings} == {name: getattr(direct, name) for name in settings}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    running = Served(http_server.free_port())
    yield running
    if running.process.poll() is None:
        running.end(signal.SIGINT)


@pytest.fixture
def teacher(served: Served, monkeypatch: pytest.MonkeyPatch, demo_teacher: Path) -> TeacherServers:
    monkeypatch.setenv(KEY, SECRET)
    vocab_size = lookup.Model("demo", demo_teacher).vocab_size()
    return TeacherServers(config_module.Server(urls=(served.url,), concurrency=4), vocab_size, K)


@pytest.fixture(scope="module")
def asked(demo_teacher: Path) -> list[Request]:
    tokenizer = lookup.Model("demo", demo_teacher).tokenizer()
    prompts = [ChatTemplate(tokenizer).render([{"role": "user", "content": question}]) for question in QUESTIONS]
    return [Request(f"q{n}", ids, MAX_TOKENS, 0.0, seed=n, k=K) for n, ids in enumerate(prompts)]


def by_id(answers: Iterator[Completion]) -> dict[str, Completion]:
    return {answer.request.request_id: answer for answer in answers}


def assert_same_answers(here: Completion, there: Completion) -> None:
    assert here.token_ids == there.token_ids
    assert here.finish_reason == there.finish_reason
    np.testing.assert_allclose(here.token_logprobs, there.token_logprobs, atol=SAME_NATS)
    np.testing.assert_allclose(here.logprobs_TK, there.logprobs_TK, atol=SAME_NATS)  # each rank
    for t in range(len(here.token_ids)):
        one, other = (dict(zip(a.ids_TK[t].tolist(), a.logprobs_TK[t], strict=True)) for a in (here, there))
        shared = one.keys() & other.keys()
        assert len(shared) >= K - 2, "candidates beyond those at the edge of the K best differ"
        assert max(abs(one[token] - other[token]) for token in shared) < SAME_NATS


@pytest.mark.ci
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_the_server_gives_the_engines_answers(teacher: TeacherServers, engine: Engine, asked: list[Request]) -> None:
    assert teacher.served.model == "demo"
    assert teacher.max_model_len == engine.max_model_len
    assert teacher.vocab_size == engine.vocab_size
    there, here = by_id(teacher.answers(asked)), by_id(engine.answers(asked))
    assert there.keys() == here.keys() == {request.request_id for request in asked}
    for name, answer in here.items():
        assert_same_answers(answer, there[name])
    drawn = [Request(**{**vars(request), "temperature": 1.0}) for request in asked]
    there, here = by_id(teacher.answers(drawn)), by_id(engine.answers(drawn))
    same = sum(there[name].token_ids == answer.token_ids for name, answer in here.items())
    print(f"drawn with the same seed: {same} of {len(here)} answers are the same")
    outside = sum(t not in row for a in there.values() for t, row in zip(a.token_ids, a.ids_TK, strict=True))
    assert outside > 0, "no sampled token outside the K best: nothing was shown of them"
    for answer in there.values():
        best_T = answer.logprobs_TK[:, 0]
        assert (answer.token_logprobs <= best_T + 1e-6).all()
        assert (np.diff(answer.logprobs_TK, axis=1) <= 0).all()


@pytest.mark.ci
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_the_server_scores_as_the_engine_captured(
    teacher: TeacherServers, engine: Engine, asked: list[Request]
) -> None:
    drawn = [Request(**{**vars(request), "temperature": 1.3}) for request in asked]
    for name, captured in by_id(engine.answers(drawn)).items():
        request = Request(**{**vars(captured.request), "completion_token_ids": tuple(captured.token_ids)})
        (scored,) = teacher.answers([request])
        assert scored.request.request_id == name
        np.testing.assert_allclose(scored.token_logprobs, captured.token_logprobs, atol=SAME_NATS)
        np.testing.assert_allclose(scored.logprobs_TK, captured.logprobs_TK, atol=SAME_NATS)


@pytest.mark.ci
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_without_the_key_nothing_is_answered(served: Served) -> None:
    body = {"prompt": [1], "max_tokens": 1}
    assert httpx.post(f"{served.url}/v1/completions", json=body, trust_env=False).status_code == 401
    listed = [word for process in served.processes() for word in process.cmdline()]
    assert SECRET not in " ".join(listed)
    assert SECRET not in served.said


@pytest.fixture(scope="module")
def plain(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that had no faults."""
    folder = tmp_path_factory.mktemp("plain")
    where = [f"runs_dir={folder}", "name=plain", *SETTINGS, f"teacher.server.urls=[{served.url}]"]
    for stage in ("prepare", "generate"):
        done = retort(stage, QUICKSTART, *where)
        assert done.returncode == 0, done.stderr
    return folder / "plain"


def copy_of_prepared(plain: Path, target: Path) -> list[str]:
    shutil.copytree(plain / "prepare", target / "other/prepare")
    shutil.copy(plain / "config.yaml", target / "other/config.yaml")
    return [QUICKSTART, f"runs_dir={target}", "name=other", *SETTINGS]


@pytest.mark.ci
@pytest.mark.engine
@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "support",
    ["nucleus", pytest.param("drawn", marks=pytest.mark.nightly), pytest.param("sampled", marks=pytest.mark.nightly)],
)
def test_another_support_stores_the_same_answers(served: Served, plain: Path, tmp_path: Path, support: str) -> None:
    where = [
        *copy_of_prepared(plain, tmp_path),
        f"generate.support={support}",
        "generate.num_draws=12",
        "generate.nucleus_mass=0.7",
    ]
    done = retort("generate", *where, f"teacher.server.urls=[{served.url}]")
    assert done.returncode == 0, done.stderr
    verified = retort("verify", str(tmp_path / "other"))
    assert verified.returncode == 0, verified.stderr
    whole, stored = responses(plain), responses(tmp_path / "other")
    assert_same(whole, stored)
    entries = dict.fromkeys(("whole", "stored"), 0)
    for name, row in stored.items():
        (all_NK, all_values_NK, _), (ids_NK, values_NK, _) = (codec.decode(r["logprobs"]) for r in (whole[name], row))
        for ids, values, some in zip(all_NK, all_values_NK, ids_NK, strict=True):
            assert set(some.tolist()) <= set(ids[values > -np.inf].tolist())
        entries["whole"] += int((all_values_NK > -np.inf).sum())
        entries["stored"] += int((values_NK > -np.inf).sum())
    assert entries["stored"] < 0.8 * entries["whole"]


@pytest.mark.ci
@pytest.mark.engine
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_through_a_faulty_proxy_the_same_responses_come_each_once(served: Served, plain: Path, tmp_path: Path) -> None:
    where = copy_of_prepared(plain, tmp_path)
    with FaultyProxy(served.port, fault_frac=0.3, seed=1) as proxy:
        late = f"teacher.server.timeout_s={LATE_S - 4}"
        done = retort("generate", *where, f"teacher.server.urls=[{proxy.url}]", late)
        assert done.returncode == 0, done.stderr
        assert len(proxy.faults) >= 3, proxy.faults
    assert "requests were sent again" in done.stderr
    assert_same(responses(plain), responses(tmp_path / "other"))
    verified = retort("verify", str(tmp_path / "other"))
    assert verified.returncode == 0, verified.stderr
    # the same run, with a server that is not there: it is whole, so none is asked
    again = retort("generate", *where, "teacher.server.urls=[http://127.0.0.1:9]")
    assert again.returncode == 0
    assert "done already" in again.stderr


@pytest.mark.nightly
@pytest.mark.engine
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_killed_at_random_moments_it_ends_with_the_same_responses(served: Served, plain: Path, tmp_path: Path) -> None:
    where = [*copy_of_prepared(plain, tmp_path), f"teacher.server.urls=[{served.url}]"]
    command, run = [*RETORT, "generate", *where], tmp_path / "other"
    environment = {**os.environ, KEY: SECRET}
    rng, began = random.Random(0), time.monotonic()
    assert retort("generate", *where).returncode == 0
    whole_s = time.monotonic() - began
    num_cut, hashes = 0, {}
    for _ in range(8):
        if (run / "generate/manifest.json").exists():  # it was through: begin again
            assert_same(responses(plain), responses(run))
            shutil.rmtree(run / "generate")
            hashes = {}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(whole_s * rng.uniform(0.3, 1.0))  # the first third loads libraries
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        assert not survivors(children, timeout=20)
        shards = {path.name: file_hash(path) for path in (run / "generate").glob("responses-*.parquet")}
        assert shards.items() >= hashes.items(), "a committed shard was lost or made again"
        num_cut, hashes = num_cut + bool(0 < len(shards) < NUM_PROMPTS // 4), shards
    assert num_cut >= 2, "no kill came between two shards: nothing was shown"
    assert retort("generate", *where).returncode == 0
    assert_same(responses(plain), responses(run))
    verified = retort("verify", str(run))
    assert verified.returncode == 0, verified.stderr


@pytest.mark.ci
@pytest.mark.engine
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_an_engine_process_that_dies_is_one_line_and_the_same_command_goes_on(plain: Path, tmp_path: Path) -> None:
    where = [*copy_of_prepared(plain, tmp_path), f"teacher.engine={ENGINE}", "generate.max_tokens=24"]
    # an engine in this process has left its preloads behind, which a shell would not have
    own = {name: value for name, value in os.environ.items() if not name.startswith(("LD_PRELOAD", "OMP_", "KMP_"))}
    environment = {**own, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    command, shards = [*RETORT, "generate", *where], tmp_path / "other/generate"
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(shards.glob("responses-*.parquet")):
        assert run.poll() is None, "it ended before its engine could be killed"
        time.sleep(0.01)
    cores = [p for p in psutil.Process(run.pid).children(recursive=True) if "EngineCore" in p.name()]
    assert len(cores) == 1
    cores[0].kill()
    _, said = run.communicate(timeout=120)
    assert run.returncode == 2, said
    assert "error: vLLM's engine process died" in said
    assert not (shards / "manifest.json").exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(responses(plain), responses(tmp_path / "other"))
    assert retort("verify", str(tmp_path / "other")).returncode == 0


@pytest.mark.ci
@pytest.mark.engine
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_server_killed_and_started_again_mid_run_is_waited_for(served: Served, plain: Path, tmp_path: Path) -> None:
    where = copy_of_prepared(plain, tmp_path)
    # a server that is told to end waits for what it is asked, until whoever asked gives up
    patience = "teacher.server.timeout_s=20"
    command = [*RETORT, "generate", *where, f"teacher.server.urls=[{served.url}]", patience]
    environment = {**os.environ, KEY: SECRET}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    shards = tmp_path / "other/generate"
    while len(list(shards.glob("responses-*.parquet"))) < 2:
        assert run.poll() is None, "it ended before its server could be killed"
        time.sleep(0.01)
    served.end(signal.SIGKILL)
    assert run.poll() is None
    again = Served(served.port)
    try:
        _, said = run.communicate(timeout=120)
    finally:
        again.end(signal.SIGTERM)
    assert run.returncode == 0, said
    assert f"{served.url}: taken out: no connection" in said
    assert f"{served.url}: answers again" in said
    assert_same(responses(plain), responses(tmp_path / "other"))
    assert retort("verify", str(tmp_path / "other")).returncode == 0
    facts = json.loads((shards / "manifest.json").read_text())["fingerprint"]
    assert facts["vllm"].startswith("vllm ")
    assert facts["teacher.served"]["model"] == "demo"

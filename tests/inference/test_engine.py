"""Real vLLM on the demo teacher: what it gives is what a plain transformers forward gives for the same ids."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.real_engine import K

from pipeline import codec
from pipeline.errors import UserError
from pipeline.generate import response_seed
from pipeline.inference import kv_cache
from pipeline.inference.engine import Completion, Engine, Request, check_engine_args
from pipeline.machine import hardware
from pipeline.models.tokenizer.chat_template import ChatTemplate

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
QUESTIONS = [
    "What is the capital of France?",
    "Name three fruits.",
    "Write a line about rain.",
    "Is ice cold?",
]


def requests(tokenizer: Any, **changes: Any) -> Iterator[Request]:
    for number, question in enumerate(QUESTIONS):
        ids = ChatTemplate(tokenizer).render([{"role": "user", "content": question}])
        base = {"max_tokens": 24, "temperature": 0.7, "seed": number, "k": K}
        yield Request(f"q{number}", ids, **{**base, **changes})


def by_id(answers: Iterator[Completion]) -> dict[str, Completion]:
    return {answer.request.request_id: answer for answer in answers}


@pytest.fixture(scope="module")
def drawn(engine: Engine, demo_tokenizer: Any) -> dict[str, Completion]:
    """Completions of all questions, asked together."""
    return by_id(engine.answers(requests(demo_tokenizer)))


def full_logprobs(reference: Any, answer: Completion) -> np.ndarray:
    prompt = answer.request.prompt_token_ids
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + answer.token_ids])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(dim=1).numpy()


def test_rows_are_the_distributions_the_tokens_were_drawn_from(drawn: dict[str, Completion], reference: Any) -> None:
    assert len(drawn) == len(QUESTIONS)
    for answer in drawn.values():
        wanted_TV = full_logprobs(reference, answer)
        T = len(answer.token_ids)
        assert answer.ids_TK.shape == answer.logprobs_TK.shape == (T, K)
        np.testing.assert_allclose(np.take_along_axis(wanted_TV, answer.ids_TK, 1), answer.logprobs_TK, atol=2e-3)
        np.testing.assert_allclose(wanted_TV[np.arange(T), answer.token_ids], answer.token_logprobs, atol=2e-3)
        best = np.sort(wanted_TV, axis=1)[:, ::-1][:, :K]
        np.testing.assert_allclose(best, answer.logprobs_TK, atol=2e-3)  # the K best, best first


def test_the_packed_tail_is_the_mass_of_everything_else(
    engine: Engine, drawn: dict[str, Completion], reference: Any
) -> None:
    answer = drawn["q0"]
    packed = codec.encode(answer.ids_TK, answer.logprobs_TK, codec.log_tail(answer.logprobs_TK, engine.vocab_size))
    ids_NK, logprobs_NK, log_tail_N = codec.decode(packed)
    wanted_NV = full_logprobs(reference, answer)
    np.put_along_axis(wanted_NV, ids_NK, -np.inf, 1)
    np.testing.assert_allclose(np.exp(wanted_NV).sum(axis=1), np.exp(log_tail_N), atol=1e-3)
    np.testing.assert_allclose(np.exp(logprobs_NK).sum(axis=1) + np.exp(log_tail_N), 1, atol=1e-6)


def test_log_probs_do_not_depend_on_the_sampling_temperature(engine: Engine, demo_tokenizer: Any) -> None:
    greedy = by_id(engine.answers(requests(demo_tokenizer, temperature=0.0, max_tokens=1)))
    warm = by_id(engine.answers(requests(demo_tokenizer, temperature=1.3, top_p=0.5, max_tokens=1)))
    for name, answer in greedy.items():
        np.testing.assert_allclose(answer.logprobs_TK, warm[name].logprobs_TK, atol=2e-3)


def test_the_end_of_turn_is_a_token_with_a_row_of_its_own(engine: Engine, demo_tokenizer: Any) -> None:
    answers = by_id(engine.answers(requests(demo_tokenizer, temperature=0.0, max_tokens=64)))
    ended = [answer for answer in answers.values() if answer.finish_reason == "stop"]
    assert ended
    assert all(answer.token_ids[-1] == demo_tokenizer.eos_token_id for answer in ended)
    assert all(len(answer.token_logprobs) == len(answer.token_ids) for answer in ended)


def test_a_response_is_drawn_from_its_own_stream_whatever_runs_beside_it(
    engine: Engine, demo_tokenizer: Any, drawn: dict[str, Completion]
) -> None:
    last = list(requests(demo_tokenizer))[-1]
    (alone,) = engine.answers([last])
    assert alone.token_ids == drawn[last.request_id].token_ids
    assert response_seed(0, "a-0") != response_seed(0, "a-1")
    assert response_seed(0, "a-0") != response_seed(1, "a-0")


def test_an_answer_that_is_scored_has_the_log_probs_it_was_drawn_with(
    engine: Engine, drawn: dict[str, Completion]
) -> None:
    again = [
        Request(name, a.request.prompt_token_ids, 1, 0.7, 0, K, completion_token_ids=tuple(a.token_ids))
        for name, a in drawn.items()
    ]
    scored = by_id(engine.answers(again))
    assert scored.keys() == drawn.keys()
    for name, answer in scored.items():
        assert answer.token_ids == drawn[name].token_ids
        assert answer.finish_reason == "stop"
        np.testing.assert_allclose(answer.token_logprobs, drawn[name].token_logprobs, atol=1e-3)
        np.testing.assert_allclose(answer.logprobs_TK, drawn[name].logprobs_TK, atol=1e-3)
        is_clear = np.diff(drawn[name].logprobs_TK[:, :2], axis=1)[:, 0] < -2e-3  # no tie for the first place
        assert (answer.ids_TK[:, 0] == drawn[name].ids_TK[:, 0])[is_clear].all()


def test_requests_are_read_no_further_ahead_than_needed(engine: Engine, demo_tokenizer: Any) -> None:
    taken = 0

    def many() -> Iterator[Request]:
        nonlocal taken
        for number in range(200):
            taken += 1
            yield Request(f"m{number}", [1, 4093, 198], 2, 0.0, 0)

    answers = engine.answers(many())
    next(answers)
    assert taken <= 4 * engine.max_num_seqs
    rest = sum(1 for _ in answers)
    assert rest == 199


def test_a_prompt_beyond_the_context_is_refused_by_name(engine: Engine) -> None:
    with pytest.raises(UserError, match=r"long-one.*1024"):
        list(engine.answers([Request("long-one", [5] * 1024, 4, 0.0, 0)]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tensor_paralel_size": 2}, "did you mean tensor_parallel_size"),
        ({"logprobs_mode": "processed_logprobs"}, "set by retort itself"),
        ({"trust_remote_code": True}, "set by retort itself"),
        ({"data_parallel_size": 2}, "tensor_parallel_size"),
    ],
)
def test_engine_arguments_are_checked_by_name(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_engine_args(arguments)


@pytest.mark.ci
def test_the_engine_behind_a_pipe_gives_the_engines_answers(
    engine: Engine, demo_tokenizer: Any, demo_teacher: Path
) -> None:
    asked = [
        {
            "request_id": r.request_id,
            "prompt_token_ids": r.prompt_token_ids,
            "max_tokens": 12,
            "temperature": 0.0,
            "seed": 0,
        }
        for r in requests(demo_tokenizer)
    ]
    lines = json.dumps({"requests": asked, "timed": True}) + "\n"
    command = [
        sys.executable,
        "-m",
        "pipeline.inference.worker",
        str(demo_teacher),
        '{"max_model_len": 1024}',
        "{}",
    ]
    environment = {**hardware.stage_environment(), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, input=lines, env=environment, capture_output=True, text=True, check=True)
    ready, reply = (json.loads(line) for line in done.stdout.splitlines())
    assert ready["context_tokens"] == 1024
    piped = {answer["request_id"]: answer for answer in reply["answers"]}
    direct = by_id(engine.answers(requests(demo_tokenizer, temperature=0.0, max_tokens=12, k=0)))
    assert {name: answer["token_ids"] for name, answer in piped.items()} == {
        name: answer.token_ids for name, answer in direct.items()
    }
    assert all(0 < answer["first_token_s"] < answer["total_s"] for answer in piped.values())


def test_what_vllm_takes_for_free_memory_is_what_the_cache_is_sized_by(engine: Engine) -> None:
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

    seen = get_memory_node_info(get_allowed_cpu_list()[0].numa_node).available_memory
    assert hardware.vllm_bytes() == pytest.approx(seen, rel=0.1)


def test_vllms_refusal_of_a_cache_is_read_as_one(engine: Engine) -> None:
    from vllm.v1.worker.cpu_worker import CPUWorker

    asked = SimpleNamespace(kv_cache_memory_bytes=1 << 60)
    worker: Any = SimpleNamespace(_should_warm_up_model=lambda: False, cache_config=asked)
    with pytest.raises(ValueError, match="VLLM_CPU_KVCACHE_SPACE") as caught:
        CPUWorker.determine_available_memory(worker)
    with pytest.raises(kv_cache.RefusedError, match=r"vLLM finds [\d.]+ of [\d.]+ GiB free on memory node \d"):
        kv_cache.check_refused(str(caught.value))

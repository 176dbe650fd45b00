"""What goes over the wire, and what is made of a reply."""

import json
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.inference.engine import Request
from pipeline.inference.servers.completions import answer, body

VOCAB = 50
REQUEST = Request("r", [1, 2], max_tokens=8, temperature=0.7, seed=5, k=3, top_p=0.9, top_k=7)


def reply(rows: list[dict[str, float]], **changes: Any) -> bytes:
    """A reply whose sampled tokens stand first in their rows."""
    tokens = [int(next(iter(row)).removeprefix("token_id:")) for row in rows]
    logprobs = {"token_logprobs": [next(iter(row.values())) for row in rows], "top_logprobs": rows}
    choice = {"finish_reason": "stop", "token_ids": tokens, "prompt_token_ids": [1, 2], "logprobs": logprobs}
    return json.dumps({"choices": [{**choice, **changes}]}).encode()


def test_sampling_is_asked_for_as_the_engine_is_asked() -> None:
    asked = body(REQUEST, "m", VOCAB, max_model_len=64)
    wanted = {"model": "m", "prompt": [1, 2], "max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "top_k": 7, "seed": 5}
    assert asked | wanted == asked
    assert asked["logprobs"] == 4, "one more than K: the sampled token may take a place"


def test_what_a_models_generation_config_recommends_is_overridden() -> None:
    asked = body(REQUEST, "m", VOCAB, max_model_len=64)
    assert (asked["repetition_penalty"], asked["min_p"]) == (1.0, 0.0)
    assert (asked["presence_penalty"], asked["frequency_penalty"]) == (0.0, 0.0)


def test_the_sampled_token_stands_once_and_in_its_place() -> None:
    rows = [{"token_id:4": -2.0, "token_id:7": -0.5, "token_id:9": -1.0, "token_id:3": -3.0}]
    got = answer(REQUEST, reply(rows), VOCAB, 0.1)
    assert got.ids_TK.tolist() == [[7, 9, 4]]
    assert got.logprobs_TK.tolist() == [[-0.5, -1.0, -2.0]]
    assert got.token_logprobs.tolist() == [-2.0]


def test_no_mass_is_minus_infinity_and_short_rows_are_padded() -> None:
    rows = [{"token_id:4": -0.1, "token_id:7": -9999.0}, {"token_id:9": 0.0}]
    got = answer(REQUEST, reply(rows), VOCAB, 0.1)
    assert got.ids_TK.tolist() == [[4, 7, 4], [9, 9, 9]]
    np.testing.assert_array_equal(
        got.logprobs_TK, np.array([[-0.1, -np.inf, -np.inf], [0, -np.inf, -np.inf]], np.float32)
    )


def test_a_scored_token_outside_the_k_best_is_no_candidate() -> None:
    request = Request("r", [1], 1, 0.0, 0, k=2, completion_token_ids=(2,))
    row = {"2": (-7.0, 30), "5": (-0.5, 1), "6": (-1.0, 2)}
    rows = [None, {token: {"logprob": p, "rank": rank, "decoded_token": "x"} for token, (p, rank) in row.items()}]
    got = answer(request, reply([{"token_id:3": -1.0}], prompt_logprobs=rows), VOCAB, 0.1)
    assert got.token_ids == [2]
    assert got.token_logprobs.tolist() == [-7.0]
    assert got.ids_TK.tolist() == [[5, 6]]


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": [4, 5]},
        {"token_ids": []},
        {"finish_reason": "abort"},
        {"logprobs": None},
        {"logprobs": {"token_logprobs": [None], "top_logprobs": [None]}},
        {"token_ids": None},
    ],
)
def test_a_reply_of_another_shape_is_a_value_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        answer(REQUEST, reply([{"token_id:4": -0.1}], **changes), VOCAB, 0.1)


def test_an_infinite_log_prob_is_another_shape() -> None:
    content = reply([{"token_id:4": -0.1}]).replace(b"-0.1", b"NaN")
    with pytest.raises(ValueError):
        answer(REQUEST, content, VOCAB, 0.1)


def test_a_completion_without_a_row_for_its_first_token_is_another_shape() -> None:
    request = Request("r", [1, 2], 1, 0.0, 0, k=2, completion_token_ids=(3,))
    content = reply([{"token_id:3": -1.0}], prompt_token_ids=[1, 2, 3], prompt_logprobs=[None, {}, None])
    with pytest.raises(ValueError, match="no log-probs of the prompt"):
        answer(request, content, VOCAB, 0.1)


def test_text_that_does_not_fit_with_its_completion_is_refused_by_name() -> None:
    request = Request("long", [1] * 5, 1, 0.0, 0, completion_token_ids=(2,) * 5)
    with pytest.raises(UserError, match="long: its prompt and completion have 10 tokens"):
        body(request, "m", VOCAB, max_model_len=10)

from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_model

from pipeline.evaluate.fidelity import preference
from pipeline.evaluate.fidelity.preference import mean_logprobs_nats, self_preference
from pipeline.models.forward.forced import ForcedResponse

VOCAB = 23


@pytest.fixture(scope="module")
def teacher() -> Any:
    return tiny_model.make(0, VOCAB)


def reference(teacher: Any, prompt: list[int], answer: list[int]) -> float:
    """One token at a time, float64."""
    total = 0.0
    for t, token in enumerate(answer):
        with torch.no_grad():
            logits_V = teacher(torch.tensor([prompt + answer[:t]])).logits[0, -1].double()
        total += float(logits_V.log_softmax(0)[token])
    return total / len(answer)


TEXTS = [
    ForcedResponse("a", [1, 2, 3], [4, 5, 6, 7, 8, 9, 10]),
    ForcedResponse("b", [9], [8]),
    ForcedResponse("c", [9], []),
    ForcedResponse("b", [9], [11, 12, 13]),
    ForcedResponse("b", [9], [11, 12, 13]),
]


@pytest.mark.parametrize("batch_tokens", [1, 12, 1000])
def test_means_equal_a_forward_pass_for_each_token(
    teacher: Any, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preference, "CHUNK_TOKENS", 4)
    got = mean_logprobs_nats(teacher, TEXTS, batch_tokens)
    expected = [reference(teacher, t.prompt_token_ids, t.token_ids) if t.token_ids else np.nan for t in TEXTS]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def greedy(teacher: Any, prompt: list[int], num: int, likeliest: bool) -> list[int]:
    answer: list[int] = []
    for _ in range(num):
        with torch.no_grad():
            logits_V = teacher(torch.tensor([prompt + answer])).logits[0, -1]
        answer.append(int(logits_V.argmax() if likeliest else logits_V.argmin()))
    return answer


def row(arm: str, item: int, token_ids: list[int], turn: int = 0, prompt: list[int] | None = None) -> Any:
    prompt = [1 + item, 2] if prompt is None else prompt
    place = {"item_id": f"i{item}", "turn": turn, "category": None}
    return {"arm": arm, **place, "prompt_token_ids": prompt, "token_ids": token_ids}


def test_the_answer_that_the_teacher_would_have_written_is_preferred(teacher: Any) -> None:
    rows: Any = []
    for item in range(6):
        rows += [row("student", item, greedy(teacher, [1 + item, 2], 4, likeliest=True))]
        rows += [row("sft_only", item, greedy(teacher, [1 + item, 2], 9, likeliest=False))]
        rows += [row("teacher", item, rows[-2]["token_ids"])]
    found = self_preference(teacher, rows, ("sft_only", "teacher", "untrained"), 64, 200, 0)
    assert list(found) == ["sft_only", "teacher"]
    assert found["sft_only"]["self_preference_frac"] == {"value": 1.0, "low": 1.0, "high": 1.0, "num": 6}
    assert found["teacher"]["self_preference_frac"]["value"] == 0.5  # the same answers
    assert found["teacher"]["self_preference_nats"]["value"] == 0.0
    by_hand = [
        reference(teacher, own["prompt_token_ids"], own["token_ids"])
        - reference(teacher, other["prompt_token_ids"], other["token_ids"])
        for own, other in zip(rows[::3], rows[1::3], strict=True)
    ]
    assert found["sft_only"]["self_preference_nats"]["value"] == pytest.approx(np.mean(by_hand), rel=1e-4)
    turned: Any = [{**r, "arm": {"student": "sft_only", "sft_only": "student"}.get(r["arm"], r["arm"])} for r in rows]
    back = self_preference(teacher, turned, ("sft_only",), 64, 200, 0)["sft_only"]
    assert back["self_preference_frac"]["value"] == 0.0


def test_turns_with_another_history_and_empty_answers_are_not_compared(teacher: Any) -> None:
    rows: Any = [
        row("student", 0, [3, 4]),
        row("sft_only", 0, [5]),
        row("student", 0, [3], turn=1, prompt=[1, 2, 3]),
        row("sft_only", 0, [3], turn=1, prompt=[1, 2, 4]),  # its own first answer stands before it
        row("student", 1, []),
        row("sft_only", 1, [5]),
    ]
    found = self_preference(teacher, rows, ("sft_only",), 64, 50, 0)
    assert found["sft_only"]["self_preference_frac"]["num"] == 1
    assert self_preference(teacher, rows[2:], ("sft_only",), 64, 50, 0) == {}


def test_an_answer_ends_before_an_id_that_the_teacher_has_no_embedding_for(teacher: Any) -> None:
    rows: Any = [row("student", 0, [3, 4, VOCAB, 5]), row("sft_only", 0, [5]), row("student", 1, [VOCAB + 7, 3])]
    found = self_preference(teacher, [*rows, row("sft_only", 1, [5])], ("sft_only",), 64, 50, 0)
    by_hand = reference(teacher, [1, 2], [3, 4]) - reference(teacher, [1, 2], [5])
    assert found["sft_only"]["self_preference_nats"]["value"] == pytest.approx(by_hand, rel=1e-4)
    assert found["sft_only"]["self_preference_frac"]["num"] == 1  # of the other item nothing is left


def test_nothing_in_its_figures_is_called_a_win_rate(teacher: Any) -> None:
    rows: Any = [row("student", 0, [3, 4]), row("sft_only", 0, [5])]
    names = set(self_preference(teacher, rows, ("sft_only",), 64, 50, 0)["sft_only"])
    assert names == {"self_preference_frac", "self_preference_nats"}

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.evaluate import fidelity
from pipeline.evaluate.fidelity import MEASURES
from pipeline.forced import ForcedText


def tiny(seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=37,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


TEXTS = [
    ForcedText("a", [1, 2, 3], [4, 5, 6, 7]),
    ForcedText("b", [9], [8, 30]),
    ForcedText("a", [1, 2, 3], [11, 12, 13, 14, 15, 16]),
]


def reference(teacher: Any, student: Any, text: ForcedText) -> np.ndarray:
    """The measures' sums of one text, written out plainly in float64."""
    ids = torch.tensor([text.prompt_token_ids + text.token_ids])
    p, q = (m(ids).logits[0].double().softmax(dim=1)[len(text.prompt_token_ids) - 1 : -1] for m in (teacher, student))
    labels = torch.tensor(text.token_ids)
    return (
        torch.stack(
            [
                (p * (p / q).log()).sum(),
                (q * (q / p).log()).sum(),
                (p.argmax(1) == q.argmax(1)).sum().double(),
                torch.minimum(p, q).sum(),
                -q[torch.arange(len(labels)), labels].log().sum(),
            ]
        )
        .detach()
        .numpy()
    )


@pytest.mark.parametrize("batch_tokens", [1, 16, 1000])
def test_sums_per_prompt_equal_a_plain_float64_forward(batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "CHUNK_TOKENS", 3)
    teacher, student = tiny(0), tiny(1)
    sums = fidelity.measure(teacher, {"student": student}, TEXTS, batch_tokens)["student"]
    wanted = {"a": reference(teacher, student, TEXTS[0]) + reference(teacher, student, TEXTS[2])}
    wanted["b"] = reference(teacher, student, TEXTS[1])
    got = np.stack([sums.of(name) for name in MEASURES], axis=1)
    order = dict(zip(sums.num_tokens(), got, strict=True))
    np.testing.assert_allclose(order[10.0], wanted["a"], rtol=1e-4)
    np.testing.assert_allclose(order[2.0], wanted["b"], rtol=1e-4)


def test_the_teacher_against_itself_is_perfect() -> None:
    teacher = tiny(0)
    sums = fidelity.measure(teacher, {"teacher": teacher}, TEXTS, 100)["teacher"]
    tokens = sums.num_tokens()
    assert np.abs(sums.of("forward_kl_nats")).max() < 1e-6
    assert (sums.of("top1_agreement_frac") == tokens).all()
    np.testing.assert_allclose(sums.of("acceptance_frac"), tokens, rtol=1e-6)


def test_a_model_with_shuffled_layers_is_caught_by_every_measure() -> None:
    teacher, broken = tiny(0), tiny(0)
    broken.model.layers = torch.nn.ModuleList(list(broken.model.layers)[::-1])
    sums = fidelity.measure(teacher, {"t": teacher, "b": broken}, TEXTS, 100)
    for name in ("forward_kl_nats", "reverse_kl_nats"):
        assert sums["b"].of(name).sum() > sums["t"].of(name).sum() + 0.1
    for name in ("top1_agreement_frac", "acceptance_frac"):
        assert sums["b"].of(name).sum() < sums["t"].of(name).sum() - 0.1

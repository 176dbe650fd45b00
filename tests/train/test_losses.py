"""The loss of a batch against whole logits, for every target, temperature and choice of positions."""

from typing import Any

import pytest
import torch
from support.listed import VOCAB, captured, settings, tiny
from torch import Tensor
from transformers import LlamaForCausalLM

from pipeline.config import Divergence
from pipeline.train.batches import collate
from pipeline.train.losses import temperature, token_losses
from pipeline.train.losses.divergences import chosen
from pipeline.train.targets import IGNORED


def whole_logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    labels_BT = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return logits[labels_BT != IGNORED]


def labels_of(batch: dict[str, Tensor]) -> Tensor:
    return batch["labels"][batch["labels"] != IGNORED]


@pytest.mark.parametrize("T", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", Divergence.__args__)
def test_a_live_teachers_divergence_is_that_of_whole_distributions(
    teacher: LlamaForCausalLM, name: str, T: float
) -> None:
    learner, asked = tiny(1), settings(targets="live", divergence=name, temperature=T, head_chunk_tokens=7)
    batch = collate(list(captured(teacher, 5)), 0, VOCAB, asked)
    losses = token_losses(learner, batch, asked, teacher)
    pair = [(whole_logits(model, batch) / T).log_softmax(dim=1) for model in (teacher, learner)]
    wanted_N = T * T * chosen(asked)(pair[0].detach(), pair[1])
    torch.testing.assert_close(losses.divergence_N, wanted_N, rtol=1e-4, atol=1e-5)
    weight = learner.model.layers[0].mlp.up_proj.weight
    [got] = torch.autograd.grad(losses.divergence_N.mean(), weight, retain_graph=True)
    [wanted] = torch.autograd.grad(wanted_N.mean(), weight)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-6)
    ce_N = -whole_logits(learner, batch).log_softmax(dim=1).gather(1, labels_of(batch)[:, None]).squeeze(1)
    torch.testing.assert_close(losses.ce_N, ce_N, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("T", [0.5, 1.0, 3.0])
def test_stored_rows_at_a_temperature_are_reweighted_and_the_student_is_exact(
    teacher: LlamaForCausalLM, T: float
) -> None:
    learner, asked = tiny(1), settings(temperature=T, head_chunk_tokens=7)
    batch = collate(list(captured(teacher, 5)), 0, VOCAB, asked)
    losses = token_losses(learner, batch, asked)
    ids_NK = batch["teacher_ids_NK"]
    student_NV = (whole_logits(learner, batch) / T).log_softmax(dim=1)
    tail_N = student_NV.scatter(1, ids_NK, -torch.inf).logsumexp(dim=1)
    p_NK, p_tail_N = temperature.tempered(batch["teacher_logprobs_NK"], batch["teacher_log_tail_N"], T)
    wanted_N = (p_NK.exp() * (p_NK - student_NV.gather(1, ids_NK))).sum(dim=1) + p_tail_N.exp() * (p_tail_N - tail_N)
    torch.testing.assert_close(losses.divergence_N, T * T * wanted_N, rtol=1e-4, atol=1e-5)
    if T == 1:
        torch.testing.assert_close(losses.divergence_N, losses.kl_N)


def test_tempering_is_exact_where_the_tail_is_what_it_is_taken_for() -> None:
    """A tail of TAIL_TOKENS equal tokens; and of any tail, `tail_tokens` says how many would do."""
    generator = torch.Generator().manual_seed(0)
    K, M = 5, temperature.TAIL_TOKENS
    logits_NV = torch.cat([3 + torch.randn(4, K, generator=generator), torch.zeros(4, M)], dim=1).double()
    logprobs_NV, ids_NK = logits_NV.log_softmax(dim=1), torch.arange(K).repeat(4, 1)
    rows = logprobs_NV[:, :K], logprobs_NV[:, K:].logsumexp(dim=1)
    for T in (0.5, 2.0, 4.0):
        got_NK, got_tail_N = temperature.tempered(*rows, T)
        exact_NV = (logits_NV / T).log_softmax(dim=1)
        torch.testing.assert_close(got_NK, exact_NV[:, :K])
        torch.testing.assert_close(got_tail_N, exact_NV[:, K:].logsumexp(dim=1))
        assert temperature.tempering_error_nats(logits_NV, ids_NK, *rows, T).abs().max() < 1e-12
        torch.testing.assert_close(temperature.tail_tokens(logprobs_NV, ids_NK, T), torch.full((4,), float(M)).double())
    peaked_NV = torch.cat([logits_NV[:, :K] + 8, torch.randn(4, M, generator=generator).double() * 3], dim=1)
    rows = peaked_NV.log_softmax(dim=1)[:, :K], peaked_NV.log_softmax(dim=1)[:, K:].logsumexp(dim=1)
    assert temperature.tempering_error_nats(peaked_NV, ids_NK, *rows, 2.0).min() > 1e-3

"""The real loss on a random two-layer model: small enough for the unit tier."""

import numpy as np
import pytest
import torch
from support.listed import VOCAB, Listed, captured, reasoned, settings, tiny
from transformers import LlamaForCausalLM

from pipeline.config import Generate, Train
from pipeline.errors import UserError
from pipeline.generate import support
from pipeline.models.forward.head import Head, support_logprobs
from pipeline.train import contract
from pipeline.train.batches import LengthGrouped, collate
from pipeline.train.losses.divergences import buckets, forward_kl_nats
from pipeline.train.targets import IGNORED

DRAWN = Generate(support="sampled", num_draws=6)


def batch_of(rows: Listed, indices: list[int]) -> dict[str, torch.Tensor]:
    return collate([rows[i] for i in indices], 0, VOCAB, Train())


def test_labels_are_the_answer_alone_and_padding_is_ignored(teacher: LlamaForCausalLM) -> None:
    rows = captured(teacher, 3)
    batch = batch_of(rows, [0, 1, 2])
    for b in range(3):
        labels = batch["labels"][b]
        assert labels[labels != IGNORED].tolist() == rows[b]["token_ids"]
        assert (labels != IGNORED).nonzero()[0].item() == len(rows[b]["prompt_token_ids"])
    assert len(batch["teacher_ids_NK"]) == sum(len(rows[b]["token_ids"]) for b in range(3))


def test_a_student_equal_to_the_teacher_has_no_kl_and_a_shift_is_seen(teacher: LlamaForCausalLM) -> None:
    batch = contract.proof_batch(captured(teacher, 8), VOCAB)
    facts = contract.check_teacher(teacher, batch, 5, 1e-3)
    assert facts["teacher_logprob_difference_nats"] < 1e-5
    assert abs(facts["teacher_kl_nats"]) < 2e-3
    with pytest.raises(UserError, match="weights are not those that generated"):
        contract.check_teacher(tiny(1).eval(), batch, 5, 1e-3)
    whole = batch_of(captured(teacher, 8), list(range(8)))
    for shift in (-1, 1):
        with pytest.raises(UserError, match="do not belong"):
            contract.check_teacher(teacher, contract.shifted(batch, shift), 5, 1e-3)
        with pytest.raises(UserError, match="not aligned"):
            contract.check_student_shift(contract.student_shift(teacher, contract.shifted(whole, shift), 5))


def test_rows_of_draws_are_proved_by_tokens_and_by_a_shift(teacher: LlamaForCausalLM) -> None:
    batch = contract.proof_batch(captured(teacher, 8, settings=DRAWN), VOCAB)
    facts = contract.check_teacher(teacher, batch, 5, 1e-3)
    assert 0.01 < facts["teacher_kl_nats"] < 1, "draws have a KL of their own"
    with pytest.raises(UserError, match="do not belong"):
        contract.check_teacher(teacher, contract.shifted(batch, 1), 5, 1e-3)


@pytest.mark.parametrize("support_name", ["top", "nucleus", "drawn", "sampled"])
def test_a_free_student_learns_the_teachers_distribution_from_every_support(support_name: str) -> None:
    """The minimum of the real loss over many responses of one distribution is that law; of counts, within K."""
    generator = torch.Generator().manual_seed(0)
    truth_V = (torch.randn(VOCAB, generator=generator) * 2).log_softmax(dim=0)
    best = truth_V.topk(24)
    settings = Generate.model_validate({"support": support_name, "num_draws": 12, "nucleus_mass": 0.8})
    ids_NK = best.indices.numpy().astype(np.int32)[None].repeat(40, axis=0)
    values_NK = best.values.numpy()[None].repeat(40, axis=0)
    rows = [
        {
            "response_id": f"r{n}-0",
            "prompt_token_ids": [1],
            "token_ids": [int(best.indices[0])] * 40,
            "masked_spans": None,
            "logprobs": support.pack(ids_NK, values_NK, VOCAB, settings, f"r{n}-0"),
        }
        for n in range(25)
    ]
    batch = collate(rows, 0, VOCAB, Train())
    targets = [batch[f"teacher_{name}"] for name in ("ids_NK", "logprobs_NK", "log_tail_N")]
    logits_VH = truth_V.clone()[:, None].requires_grad_()
    hidden_NH, labels_N = torch.ones(len(targets[0]), 1), torch.zeros(len(targets[0]), dtype=torch.long)
    optimizer = torch.optim.Adam([logits_VH], lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        student = support_logprobs(hidden_NH, Head(logits_VH), targets[0], labels_N, 4096)
        loss = forward_kl_nats(*buckets(targets[1], targets[2], student.support_NK, student.log_tail_N)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learnt_V, wanted_V = logits_VH.detach()[:, 0].softmax(dim=0), truth_V.exp()
    if support_name == "sampled":
        outside = torch.ones(VOCAB, dtype=torch.bool).scatter(0, best.indices, False)
        assert learnt_V[outside].sum() < 0.02, "counts say nothing of what is outside the K best"
        wanted_V = wanted_V.masked_fill(outside, 0)
        wanted_V /= wanted_V.sum()
    assert (learnt_V - wanted_V).abs().sum() / 2 < 0.03


def test_rows_of_different_widths_share_a_batch_and_change_no_loss(teacher: LlamaForCausalLM) -> None:
    rows = captured(teacher, 6, settings=DRAWN)
    together = contract.losses_nats(teacher, batch_of(rows, list(range(6))), 5)
    alone = [contract.losses_nats(teacher, batch_of(rows, [i]), 5) for i in range(6)]
    widths = {len(batch_of(rows, [i])["teacher_ids_NK"][0]) for i in range(6)}
    assert len(widths) > 1
    for got, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(got, torch.cat(parts), rtol=1e-5, atol=1e-5)


def test_a_student_that_is_noise_before_it_learns_is_let_pass(teacher: LlamaForCausalLM) -> None:
    batch = batch_of(captured(teacher, 8), list(range(8)))
    for seed in range(1, 4):  # random students: whether a shift fits better is chance
        facts = contract.student_shift(tiny(seed).eval(), batch, 5)
        if abs(facts["student_kl_nats"] - facts["student_kl_shifted_nats"]) < contract.SHIFT_MARGIN_NATS:
            contract.check_student_shift(facts)
            break
    else:
        pytest.fail("no random student was near chance: the test needs other seeds")


def test_rows_stored_one_token_late_are_refused(teacher: LlamaForCausalLM) -> None:
    assert contract.check_sampled_tokens(captured(teacher, 6), VOCAB) < 0.1
    assert contract.check_sampled_tokens(captured(teacher, 6, settings=DRAWN), VOCAB) == 0
    for drawn in (None, DRAWN):
        with pytest.raises(UserError, match="not aligned"):
            contract.check_sampled_tokens(captured(teacher, 6, shift=1, settings=drawn), VOCAB)


def test_ids_beyond_the_vocabulary_are_refused(teacher: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="outside the vocabulary"):
        contract.check_sampled_tokens(captured(teacher, 2), 2)


def test_a_batch_with_an_id_beyond_the_vocabulary_is_refused(teacher: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="outside the student's vocabulary of 2"):
        collate(list(captured(teacher, 2)), 0, 2, Train())


def test_the_order_of_rows_is_a_function_of_seed_and_epoch() -> None:
    lengths = [7, 3, 9, 4, 8, 5, 6, 2, 10]
    sampler = LengthGrouped(lengths, 2, seed=0)
    first = list(sampler)
    assert sorted(first) == list(range(9))
    assert first == list(LengthGrouped(lengths, 2, seed=0))
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert first != list(LengthGrouped(lengths, 2, seed=1))


def test_log_probs_of_another_length_are_refused(teacher: LlamaForCausalLM) -> None:
    rows = list(captured(teacher, 1))
    rows[0]["logprobs"] = captured(teacher, 2)[1]["logprobs"]
    with pytest.raises(UserError, match="rows of log-probs"):
        collate(rows, 0, VOCAB, Train())


def test_masked_reasoning_is_context_without_loss(teacher: LlamaForCausalLM) -> None:
    rows = reasoned(captured(teacher, 4))
    whole, masked = (collate(rows, 0, VOCAB, settings(reasoning=how)) for how in ("keep", "mask"))
    assert torch.equal(masked["input_ids"], whole["input_ids"])
    for b, row in enumerate(rows):
        labels = masked["labels"][b]
        assert labels[labels != IGNORED].tolist() == row["token_ids"][row["reasoning_tokens"] :]
    kept = torch.cat([torch.arange(len(row["token_ids"])) >= row["reasoning_tokens"] for row in rows])
    for name in ("teacher_ids_NK", "teacher_logprobs_NK", "teacher_log_tail_N"):
        assert torch.equal(masked[name], whole[name][kept])
    assert abs(contract.mean_kl_nats(teacher, masked, 5)) < 2e-3
    learner = tiny(1).eval()
    torch.testing.assert_close(
        contract.losses_nats(learner, masked, 4)[1], contract.losses_nats(learner, whole, 4)[1][kept]
    )


def test_dropped_reasoning_is_gone_from_between_its_tags_with_its_rows(teacher: LlamaForCausalLM) -> None:
    rows = reasoned(captured(teacher, 4))
    whole, dropped = collate(rows, 0, VOCAB, Train()), collate(rows, 0, VOCAB, settings(reasoning="drop"))
    for b, row in enumerate(rows):
        r, tokens = row["reasoning_tokens"], row["token_ids"]
        context = row["prompt_token_ids"] + tokens[:r][:1] + tokens[:r][2:]  # tags stay, what is between them goes
        length = len(context) + len(tokens) - r
        assert dropped["input_ids"][b, :length].tolist() == context + tokens[r:]
        assert dropped["attention_mask"][b].sum() == length
        labels = dropped["labels"][b]
        assert labels[: len(context)].eq(IGNORED).all()
        assert labels[len(context) : length].tolist() == tokens[r:]
    kept = torch.cat([torch.arange(len(row["token_ids"])) >= row["reasoning_tokens"] for row in rows])
    for name in ("teacher_ids_NK", "teacher_logprobs_NK", "teacher_log_tail_N"):
        assert torch.equal(dropped[name], whole[name][kept])


@pytest.mark.parametrize("how", ["mask", "drop"])
def test_a_batch_of_nothing_but_reasoning_is_refused(teacher: LlamaForCausalLM, how: str) -> None:
    [row] = list(captured(teacher, 1))
    T = len(row["token_ids"])
    whole = {**row, "reasoning_tokens": T, "reasoning_start": 0, "reasoning_end": T}
    with pytest.raises(UserError, match=f"r0-0: nothing but reasoning, and train.reasoning={how}"):
        collate([whole], 0, VOCAB, settings(reasoning=how))
    assert len(collate([whole], 0, VOCAB, Train())["teacher_ids_NK"]) == T


def test_padding_and_batching_leave_each_tokens_loss_as_it_is(teacher: LlamaForCausalLM) -> None:
    rows, learner = captured(teacher, 5), tiny(1).eval()
    together = torch.cat([x[None] for x in contract.losses_nats(learner, batch_of(rows, list(range(5))), 4)])
    alone = torch.cat([torch.stack(contract.losses_nats(learner, batch_of(rows, [i]), 100)) for i in range(5)], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_losses_equal_a_dense_forward_of_the_whole_model(teacher: LlamaForCausalLM) -> None:
    rows, learner = captured(teacher, 1), tiny(1).eval()
    row = rows[0]
    P, ids = len(row["prompt_token_ids"]), row["prompt_token_ids"] + row["token_ids"]
    logprobs_TV = learner(torch.tensor([ids])).logits[0].log_softmax(dim=1)[P - 1 : -1]
    wanted_ce = -logprobs_TV[torch.arange(len(row["token_ids"])), torch.tensor(row["token_ids"])]
    ce_N, kl_N = contract.losses_nats(learner, batch_of(rows, [0]), 3)
    torch.testing.assert_close(ce_N, wanted_ce, atol=1e-5, rtol=1e-5)
    teacher_TV = teacher(torch.tensor([ids])).logits[0].log_softmax(dim=1)[P - 1 : -1]
    full_kl_N = (teacher_TV.exp() * (teacher_TV - logprobs_TV)).sum(dim=1)
    assert (kl_N <= full_kl_N + 1e-3).all()

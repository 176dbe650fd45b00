"""The real loss and the real trainer on a random two-layer model: small enough for the unit tier."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.config import Generate, Train
from pipeline.errors import UserError
from pipeline.generate import support
from pipeline.train import contract
from pipeline.train.batches import IGNORED, LengthGrouped, collate
from pipeline.train.divergences import forward_kl_nats
from pipeline.train.head import support_logprobs
from pipeline.train.trainer import fit, last_whole_checkpoint, token_losses

VOCAB, K = 61, 8
DRAWN = Generate(support="sampled", num_draws=6)


def tiny(seed: int = 0, layers: int = 2) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def captured(
    teacher: LlamaForCausalLM, num: int, seed: int = 0, shift: int = 0, settings: Generate | None = None
) -> Dataset:
    """Responses drawn by hand from the teacher, their rows written independently of the product's batching."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(num):
        prompt = torch.randint(1, VOCAB, (3 + index % 4,), generator=generator).tolist()
        tokens, kept = [], []
        for _ in range(4 + index % 7):
            with torch.no_grad():
                logprobs_V = teacher(torch.tensor([prompt + tokens])).logits[0, -1].log_softmax(dim=0)
            kept.append(logprobs_V)
            tokens.append(int(torch.multinomial(logprobs_V.exp(), 1, generator=generator)))
        logprobs_NV = torch.stack(kept).roll(shift, dims=0)
        best = logprobs_NV.topk(K, dim=1)
        values = best.values.numpy()
        rows.append(
            {
                "response_id": f"r{index}-0",
                "prompt_token_ids": prompt,
                "token_ids": tokens,
                "token_logprobs": [float(row[t]) for row, t in zip(kept, tokens, strict=True)],
                "logprobs": support.pack(
                    best.indices.numpy().astype(np.int32), values, VOCAB, settings or Generate(), f"r{index}-0"
                ),
                "length": len(prompt) + len(tokens),
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def teacher() -> LlamaForCausalLM:
    return tiny().eval()


@pytest.fixture
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(VOCAB)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), pad_token="w0", eos_token="w1"
    )


def batch_of(rows: Dataset, indices: list[int]) -> dict[str, torch.Tensor]:
    return collate([rows[i] for i in indices], pad_token_id=0, vocab_size=VOCAB)


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
            "logprobs": support.pack(ids_NK, values_NK, VOCAB, settings, f"r{n}-0"),
        }
        for n in range(25)
    ]
    batch = collate(rows, 0, VOCAB)
    targets = [batch[f"teacher_{name}"] for name in ("ids_NK", "logprobs_NK", "log_tail_N")]
    logits_VH = truth_V.clone()[:, None].requires_grad_()
    hidden_NH, labels_N = torch.ones(len(targets[0]), 1), torch.zeros(len(targets[0]), dtype=torch.long)
    optimizer = torch.optim.Adam([logits_VH], lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        student = support_logprobs(hidden_NH, logits_VH, targets[0], labels_N, 4096)
        loss = forward_kl_nats(targets[1], targets[2], student.support_NK, student.log_tail_N).mean()
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
    for settings in (None, DRAWN):
        with pytest.raises(UserError, match="not aligned"):
            contract.check_sampled_tokens(captured(teacher, 6, shift=1, settings=settings), VOCAB)


def test_ids_beyond_the_vocabulary_are_refused(teacher: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="outside the vocabulary"):
        contract.check_sampled_tokens(captured(teacher, 2), 2)


def test_a_batch_with_an_id_beyond_the_vocabulary_is_refused(teacher: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="outside the student's vocabulary of 2"):
        collate(captured(teacher, 2).to_list(), 0, 2)


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
    rows = captured(teacher, 1).to_list()
    rows[0]["logprobs"] = captured(teacher, 2)[1]["logprobs"]
    with pytest.raises(UserError, match="rows of log-probs"):
        collate(rows, 0, VOCAB)


def reasoned(rows: Dataset) -> list[dict[str, Any]]:
    """The rows, every second one with three tokens of reasoning, of which one is between the tags."""
    some = {"reasoning_tokens": 3, "reasoning_start": 1, "reasoning_end": 2}
    none = dict.fromkeys(some, 0)
    return [{**row, **(none if place % 2 else some)} for place, row in enumerate(rows.to_list())]


def test_masked_reasoning_is_context_without_loss(teacher: LlamaForCausalLM) -> None:
    rows = reasoned(captured(teacher, 4))
    whole, masked = (collate(rows, 0, VOCAB, how) for how in ("keep", "mask"))
    assert torch.equal(masked["input_ids"], whole["input_ids"])
    for b, row in enumerate(rows):
        labels = masked["labels"][b]
        assert labels[labels != IGNORED].tolist() == row["token_ids"][row["reasoning_tokens"] :]
    kept = torch.cat([torch.arange(len(row["token_ids"])) >= row["reasoning_tokens"] for row in rows])
    for name in ("teacher_ids_NK", "teacher_logprobs_NK", "teacher_log_tail_N"):
        assert torch.equal(masked[name], whole[name][kept])
    assert abs(contract.mean_kl_nats(teacher, masked, 5)) < 2e-3
    learner = tiny(1).eval()
    torch.testing.assert_close(token_losses(learner, masked, 4)[1], token_losses(learner, whole, 4)[1][kept])


def test_dropped_reasoning_is_gone_from_between_its_tags_with_its_rows(teacher: LlamaForCausalLM) -> None:
    rows = reasoned(captured(teacher, 4))
    whole, dropped = collate(rows, 0, VOCAB), collate(rows, 0, VOCAB, "drop")
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
    [row] = captured(teacher, 1).to_list()
    T = len(row["token_ids"])
    whole = {**row, "reasoning_tokens": T, "reasoning_start": 0, "reasoning_end": T}
    with pytest.raises(UserError, match=f"r0-0: nothing but reasoning, and train.reasoning={how}"):
        collate([whole], 0, VOCAB, how)
    assert len(collate([whole], 0, VOCAB)["teacher_ids_NK"]) == T


@pytest.mark.parametrize(("how", "num_masked"), [("keep", 0), ("mask", 3), ("drop", 3)])
def test_training_learns_the_tokens_that_the_switch_leaves(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any, how: str, num_masked: int
) -> None:
    """One step over all rows: the trainer's own mean loss is that of the tokens that are left."""
    rows = reasoned(captured(teacher, 4))
    (tmp_path / "run").mkdir()
    asked = settings(reasoning=how, batch_size=4, epochs=1)
    fit(asked, "student", tiny(1), tokenizer, Dataset.from_list(rows), tmp_path / "run", tmp_path / "checkpoints")
    [line] = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    ce_N, kl_N = token_losses(tiny(1), collate(rows, 0, VOCAB, how), 100)
    assert len(ce_N) == sum(len(row["token_ids"]) for row in rows) - 2 * num_masked
    assert line["kl_nats"] == pytest.approx(kl_N.mean().item(), rel=1e-4)
    assert line["loss"] == pytest.approx(0.5 * (ce_N.mean() + kl_N.mean()).item(), rel=1e-4)


def test_padding_and_batching_leave_each_tokens_loss_as_it_is(teacher: LlamaForCausalLM) -> None:
    rows, learner = captured(teacher, 5), tiny(1).eval()
    together = torch.cat([x[None] for x in token_losses(learner, batch_of(rows, list(range(5))), 4)])
    alone = torch.cat([torch.stack(token_losses(learner, batch_of(rows, [i]), 100)) for i in range(5)], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_losses_equal_a_dense_forward_of_the_whole_model(teacher: LlamaForCausalLM) -> None:
    rows, learner = captured(teacher, 1), tiny(1).eval()
    row = rows[0]
    P, ids = len(row["prompt_token_ids"]), row["prompt_token_ids"] + row["token_ids"]
    logprobs_TV = learner(torch.tensor([ids])).logits[0].log_softmax(dim=1)[P - 1 : -1]
    wanted_ce = -logprobs_TV[torch.arange(len(row["token_ids"])), torch.tensor(row["token_ids"])]
    ce_N, kl_N = token_losses(learner, batch_of(rows, [0]), 3)
    torch.testing.assert_close(ce_N, wanted_ce, atol=1e-5, rtol=1e-5)
    teacher_TV = teacher(torch.tensor([ids])).logits[0].log_softmax(dim=1)[P - 1 : -1]
    full_kl_N = (teacher_TV.exp() * (teacher_TV - logprobs_TV)).sum(dim=1)
    assert (kl_N <= full_kl_N + 1e-3).all()


def settings(**changes: Any) -> Train:
    base = {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "dtype": "float32",
        "report_to": (),
        "log_steps": 1,
    }
    return Train.model_validate({**base, **changes})


def trained(tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any, rows: int = 12, **changes: Any) -> Any:
    model = tiny(1)
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    facts = fit(
        settings(**changes),
        "student",
        model,
        tokenizer,
        captured(teacher, rows),
        folder,
        tmp_path / "checkpoints",
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return facts, lines


def test_accumulation_gives_the_loss_and_step_of_one_large_batch(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, lines_one = trained(tmp_path / "a", teacher, tokenizer, batch_size=12)
    many, lines_many = trained(tmp_path / "b", teacher, tokenizer, batch_size=2, accumulation_steps=6)
    assert [a["loss"] for a in lines_one] == pytest.approx([b["loss"] for b in lines_many], rel=1e-5)
    for a, b in zip(one["model"].parameters(), many["model"].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_the_logged_loss_is_the_weighted_mean_per_token(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any
) -> None:
    _, lines = trained(tmp_path, teacher, tokenizer, ce_weight=0.3, kd_weight=0.7)
    for line in lines:
        assert line["loss"] == pytest.approx(0.3 * line["ce_nats"] + 0.7 * line["kl_nats"], rel=1e-4)


def test_training_brings_the_student_to_the_teacher(tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any) -> None:
    _, lines = trained(tmp_path, teacher, tokenizer, rows=24, epochs=12, learning_rate=1e-2, ce_weight=0, kd_weight=1)
    assert lines[-1]["kl_nats"] < 0.5 * lines[0]["kl_nats"]


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, lines_whole = trained(tmp_path / "a", teacher, tokenizer, checkpoint_steps=2)
    _, _ = trained(tmp_path / "b", teacher, tokenizer, checkpoint_steps=2)
    checkpoints = tmp_path / "b" / "checkpoints"
    (checkpoints / "checkpoint-6" / "trainer_state.json").unlink()  # the kill came while it was written
    assert last_whole_checkpoint(checkpoints) == str(checkpoints / "checkpoint-4")
    assert not (checkpoints / "checkpoint-6").exists()
    again, lines_again = trained(tmp_path / "b", teacher, tokenizer, checkpoint_steps=2)
    assert again["resumed_from"] == "checkpoint-4"
    assert [line["step"] for line in lines_again] == [line["step"] for line in lines_whole]
    assert lines_again[-1]["loss"] == pytest.approx(lines_whole[-1]["loss"], abs=1e-6)
    for a, b in zip(again["model"].parameters(), whole["model"].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_lora_trains_adapters_and_hands_back_a_merged_plain_model(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any
) -> None:
    facts, lines = trained(tmp_path, teacher, tokenizer, lora={"r": 4, "alpha": 8}, learning_rate=1e-2, epochs=4)
    assert lines[-1]["loss"] < lines[0]["loss"]
    merged = facts["model"].state_dict()
    assert merged.keys() == tiny().state_dict().keys()
    base = tiny(1).state_dict()
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(merged[name], base[name])

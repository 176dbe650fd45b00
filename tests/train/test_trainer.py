"""The real trainer on a random two-layer model: small enough for the unit tier."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.listed import VOCAB, Listed, captured, reasoned, settings, tiny
from transformers import LlamaForCausalLM

from pipeline.config import Train
from pipeline.errors import UserError
from pipeline.train import contract, student
from pipeline.train.batches import collate
from pipeline.train.trainer import fit, last_whole_checkpoint, weights_at


def trained(
    tmp_path: Path,
    teacher: LlamaForCausalLM,
    tokenizer: Any,
    rows: int = 12,
    validation: int = 0,
    live: Any = None,
    **changes: Any,
) -> Any:
    model = tiny(1)
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    facts = fit(
        settings(**changes),
        "student",
        model,
        tokenizer,
        captured(teacher, rows),
        captured(teacher, validation, seed=1) if validation else Listed([]),
        folder,
        tmp_path / "checkpoints",
        live,
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return facts, lines


@pytest.mark.parametrize(
    "changes", [{"batch_size": 2, "accumulation_steps": 6}, {"batch_size": 12, "pack_tokens": 40}], ids=str
)
def test_accumulation_and_packs_give_the_loss_and_step_of_one_large_padded_batch(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any, changes: dict[str, Any]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, lines_one = trained(tmp_path / "a", teacher, tokenizer, batch_size=12)
    other, lines_other = trained(tmp_path / "b", teacher, tokenizer, **changes)
    assert [a["loss"] for a in lines_one] == pytest.approx([b["loss"] for b in lines_other], rel=1e-5)
    for a, b in zip(one["model"].parameters(), other["model"].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_the_logged_loss_is_the_weighted_mean_per_token(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any
) -> None:
    _, lines = trained(tmp_path, teacher, tokenizer, ce_weight=0.3, kd_weight=0.7)
    for line in lines:
        assert line["loss"] == pytest.approx(0.3 * line["ce_nats"] + 0.7 * line["kl_nats"], rel=1e-4)


@pytest.mark.parametrize(("batch_size", "is_told"), [(12, True), (2, False)])
def test_a_training_of_few_steps_is_told_that_it_moves_hardly_a_weight(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any, capsys: Any, batch_size: int, is_told: bool
) -> None:
    trained(tmp_path, teacher, tokenizer, rows=12, epochs=1, batch_size=batch_size)
    assert ("train student: 1 steps in all" in " ".join(capsys.readouterr().err.split())) == is_told


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


@pytest.mark.parametrize(("how", "num_masked"), [("keep", 0), ("mask", 3), ("drop", 3)])
def test_training_learns_the_tokens_that_the_switch_leaves(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any, how: str, num_masked: int
) -> None:
    """One step over all rows: the trainer's own mean loss is that of the tokens that are left."""
    rows = reasoned(captured(teacher, 4))
    (tmp_path / "run").mkdir()
    asked = settings(reasoning=how, batch_size=4, epochs=1)
    fit(asked, "student", tiny(1), tokenizer, Listed(rows), Listed([]), tmp_path / "run", tmp_path / "checkpoints")
    [line] = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    ce_N, kl_N = contract.losses_nats(tiny(1), collate(rows, 0, VOCAB, settings(reasoning=how)), 100)
    assert len(ce_N) == sum(len(row["token_ids"]) for row in rows) - 2 * num_masked
    assert line["kl_nats"] == pytest.approx(kl_N.mean().item(), rel=1e-4)
    assert line["loss"] == pytest.approx(0.5 * (ce_N.mean() + kl_N.mean()).item(), rel=1e-4)


def test_weights_move_in_straight_lines_to_their_ends() -> None:
    assert weights_at(settings(ce_weight=0.3, kd_weight=0.7), 5, 11) == (0.3, 0.7)
    moved = settings(ce_weight=1.0, ce_weight_end=0.0, kd_weight=0.0, kd_weight_end=2.0)
    assert [weights_at(moved, step, 11) for step in (0, 5, 10)] == [(1.0, 0.0), (0.5, 1.0), (0.0, 2.0)]
    assert weights_at(moved, 0, 1) == (1.0, 0.0)


def test_the_schedule_reaches_the_loss(tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any) -> None:
    _, lines = trained(tmp_path, teacher, tokenizer, ce_weight=1, ce_weight_end=0, kd_weight=0, kd_weight_end=1)
    steps = len(lines)
    for place, line in enumerate(lines):
        way = place / (steps - 1)
        assert line["loss"] == pytest.approx((1 - way) * line["ce_nats"] + way * line["kl_nats"], rel=1e-4)


def test_validation_is_measured_over_all_its_tokens_and_the_best_checkpoint_becomes_the_student(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any
) -> None:
    fitted, lines = trained(
        tmp_path, teacher, tokenizer, validation=5, learning_rate=0.1, epochs=6, checkpoint_steps=2, seed=3
    )
    validated = [line for line in lines if "eval_kl_nats" in line]
    assert [line["step"] for line in validated] == list(range(2, 19, 2))
    best = min(validated, key=lambda line: line["eval_kl_nats"])
    assert fitted["best_step"] == best["step"]
    assert best is not validated[-1], "the learning rate is to be too high, so that the last is not the best"
    rows = captured(teacher, 5, seed=1)
    batch = collate(list(rows), 0, VOCAB, Train())
    ce_N, kl_N = contract.losses_nats(fitted["model"], batch, 100)
    assert best["eval_kl_nats"] == pytest.approx(kl_N.mean().item(), rel=1e-5)
    assert best["eval_ce_nats"] == pytest.approx(ce_N.mean().item(), rel=1e-5)
    assert fitted["best_validation_kl_nats"] == best["eval_kl_nats"]
    agree, accepted = by_hand(fitted["model"], rows)
    assert best["eval_top1_agreement_frac"] == pytest.approx(agree, abs=1e-6)
    assert best["eval_acceptance_frac"] == pytest.approx(accepted, rel=1e-2)


def by_hand(model: Any, rows: Listed) -> tuple[float, float]:
    """Top-1 agreement and acceptance over the support and the rest, from whole logits, row by row."""
    from pipeline import codec

    agrees, accepted, num = 0.0, 0.0, 0
    for row in rows:
        P, ids = len(row["prompt_token_ids"]), row["prompt_token_ids"] + row["token_ids"]
        with torch.no_grad():
            q_NV = model(torch.tensor([ids])).logits[0].softmax(dim=1)[P - 1 : -1]
        stored = codec.decode(row["logprobs"])
        for q_V, support_K, logprobs_K, log_tail in zip(q_NV, *map(torch.tensor, stored), strict=True):
            inside = q_V[support_K.long()]
            agrees += float(q_V.argmax() == support_K[logprobs_K.argmax()])
            accepted += float(torch.minimum(inside, logprobs_K.exp()).sum())
            accepted += min(1 - float(inside.sum()), float(log_tail.exp()))
            num += 1
    return agrees / num, accepted / num


def test_keep_last_takes_the_last_step(tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any) -> None:
    changes = {"learning_rate": 0.1, "epochs": 6, "checkpoint_steps": 2, "seed": 3}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    last, _ = trained(tmp_path / "a", teacher, tokenizer, validation=5, keep="last", **changes)
    without, _ = trained(tmp_path / "b", teacher, tokenizer, **changes)
    assert last["best_step"] is None
    for a, b in zip(last["model"].parameters(), without["model"].parameters(), strict=True):
        assert torch.equal(a, b)


class Poisoned(Listed):
    """Rows of which some make the gradient infinite from the n-th reading on."""

    def __init__(self, rows: Listed, model: Any, first: int, num: int) -> None:
        super().__init__(list(rows))
        self._model, self._readings, self._first, self._num, self.weights = model, 0, first, num, None

    def __getitem__(self, number: int) -> dict[str, Any]:
        self._readings += 1
        norm = self._model.model.norm.weight
        if self._readings == self._first:
            self.weights = [p.detach().clone() for p in self._model.parameters()]
            self._handle = norm.register_hook(lambda gradient: gradient * torch.nan)
        if self._readings == self._first + self._num:
            self._handle.remove()
        return super().__getitem__(number)


def test_a_step_without_a_finite_gradient_is_left_out(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny(1)
    rows = Poisoned(captured(teacher, 12), model, first=13, num=8)  # the loader reads a batch ahead
    fitted = fit(settings(epochs=3), "student", model, tokenizer, rows, Listed([]), tmp_path, tmp_path / "checkpoints")
    assert "the step is left out" in capsys.readouterr().err
    assert fitted["steps"] == 9
    assert all(p.isfinite().all() for p in fitted["model"].parameters())
    [broken] = [
        line
        for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        if line["grad_norm"] is None
    ]
    assert broken["step"] == 4


def test_gradients_that_stay_infinite_stop_the_training_and_spare_weights_and_checkpoints(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any
) -> None:
    model = tiny(1)
    rows, checkpoints = Poisoned(captured(teacher, 12), model, first=17, num=1000), tmp_path / "checkpoints"
    asked = settings(epochs=5, checkpoint_steps=2)
    with pytest.raises(
        UserError,
        match=r"no finite gradient in 3 steps in a row, up to step \d+\. .*checkpoints to keep it, .*learning_rate",
    ):
        fit(asked, "student", model, tokenizer, rows, Listed([]), tmp_path, checkpoints)
    assert last_whole_checkpoint(checkpoints) is not None
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_live_teacher_is_the_reference_of_what_is_stored(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any
) -> None:
    """Over the whole vocabulary the divergence is a little higher than over buckets, and trains."""
    _, lines = trained(
        tmp_path,
        teacher,
        tokenizer,
        live=teacher,
        targets="live",
        ce_weight=0,
        kd_weight=1,
        learning_rate=1e-2,
        epochs=6,
    )
    for line in lines:
        assert line["kl_nats"] - 2e-3 < line["divergence"] < line["kl_nats"] + 1
        assert line["loss"] == pytest.approx(line["divergence"], rel=1e-5)
    assert lines[-1]["divergence"] < 0.6 * lines[0]["divergence"]


@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_on_few_bits_learn_and_are_merged_into_whole_weights(
    tmp_path: Path, teacher: LlamaForCausalLM, tokenizer: Any, bits: int
) -> None:
    config = tiny().config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 32
    base = LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    model = student.load_frozen(tmp_path / "base", bits)
    asked = settings(lora={"r": 4, "alpha": 8, "bits": bits}, epochs=6, learning_rate=1e-2)
    rows = captured(teacher, 24)
    fitted = fit(asked, "student", model, tokenizer, rows, Listed([]), tmp_path, tmp_path / "checkpoints")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    whole = student.merged(fitted["model"], tmp_path / "base", tmp_path / "adapters")
    assert whole.state_dict().keys() == base.state_dict().keys()
    name = "model.layers.0.mlp.up_proj.weight"
    moved = whole.state_dict()[name] - base.state_dict()[name]
    assert 0 < torch.linalg.matrix_rank(moved, atol=1e-5) <= 4
    before, after = (
        contract.losses_nats(each, collate(list(rows), 0, VOCAB, asked), 100)[0].mean() for each in (base, whole)
    )
    assert after < before

"""Answers end to end: each sees itself alone, and learns what it learns padded."""

from typing import Any

import numpy as np
import pytest
import torch
from support.listed import Listed
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from pipeline import codec
from pipeline.config import Train
from pipeline.errors import UserError
from pipeline.models.forward import packed_attention
from pipeline.train import packing, student
from pipeline.train.batches import collate, collate_flat, collate_items, items, sampler
from pipeline.train.losses import token_losses

VOCAB, K = 61, 6
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
GEMMA: dict[str, Any] = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 8}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SHAPE, **GEMMA, sliding_window=16),
    "mistral": MistralConfig(**SHAPE, sliding_window=16),
}


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def rows_of(num: int = 7, longest: int = 15) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(num):
        P, A = 1 + n % 4, 2 + (5 * n) % (longest - 5)
        ids_NK = np.array([rng.choice(VOCAB, K, replace=False) for _ in range(A)], np.int32)
        logits_NK = rng.normal(size=(A, K + 1))
        logprobs_NK = logits_NK - np.logaddexp.reduce(logits_NK, axis=1, keepdims=True)
        packed = codec.encode(ids_NK, logprobs_NK[:, :K].astype(np.float32), logprobs_NK[:, K].astype(np.float32))
        prompt, answer = rng.integers(1, VOCAB, P).tolist(), rng.integers(1, VOCAB, A).tolist()
        none = dict.fromkeys(("reasoning_tokens", "reasoning_start", "reasoning_end"), 0) | {"masked_spans": []}
        rows.append(
            {"response_id": f"r{n}", "prompt_token_ids": prompt, "token_ids": answer, "logprobs": packed, **none}
        )
    return rows


def losses_and_gradients(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    model.train()
    model.zero_grad()
    losses = token_losses(model, batch, Train(head_chunk_tokens=7))
    torch.stack([each.mean() for each in losses]).sum().backward()
    return [each.detach() for each in losses] + [p.grad.clone() for p in model.parameters() if p.grad is not None]


def worst_difference(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    assert len(some) == len(others) > 2
    return max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("changes", [{}, {"positions_frac": 0.4}, {"tail": "label"}])
def test_packed_losses_and_gradients_are_those_of_padded_rows(
    name: str, checkpointing: bool, changes: dict[str, Any]
) -> None:
    rows, settings = rows_of(), Train.model_validate(changes)
    padded = losses_and_gradients(model_of(CONFIGS[name]), collate(rows, 0, VOCAB, settings))
    model = model_of(CONFIGS[name])
    packed_attention.use(model, "float32")
    if checkpointing:
        model.gradient_checkpointing_enable()
    flat = collate_flat(rows, VOCAB, settings)
    assert "attention_mask" not in flat
    assert worst_difference(losses_and_gradients(model, flat), padded) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_wrong_boundary_is_seen(name: str) -> None:
    """What the test above rests on: plain concatenation, and an end that is one token off, give other losses."""
    rows = rows_of()
    padded = losses_and_gradients(model_of(CONFIGS[name]), collate(rows, 0, VOCAB, Train()))
    model = model_of(CONFIGS[name] if name == "llama" else Gemma2Config(**SHAPE, **GEMMA, sliding_window=999))
    packed_attention.use(model, "float32")
    flat = collate_flat(rows, VOCAB, Train())
    T = flat["input_ids"].shape[1]
    one = torch.tensor([0, T], dtype=torch.int32)
    moved = flat["cu_seq_lens_q"] + torch.tensor([0, *[1] * (len(rows) - 1), 0], dtype=torch.int32)
    for ends in (one, moved):
        wrong = {**flat, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        assert worst_difference(losses_and_gradients(model, wrong), padded) > 1e-3
    running = {**flat, "position_ids": torch.arange(T)[None], "cu_seq_lens_q": one}
    assert worst_difference(losses_and_gradients(model, running), padded) > 1e-3


def test_a_pruned_model_is_packed_in_all_its_layers() -> None:
    """Its layers hold the config that they had before."""
    rows, pruned = rows_of(), [student.keep_layers(model_of(CONFIGS["llama"]), [1]) for _ in range(2)]
    packed_attention.use(pruned[1], "float32")
    padded = losses_and_gradients(pruned[0], collate(rows, 0, VOCAB, Train()))
    assert worst_difference(losses_and_gradients(pruned[1], collate_flat(rows, VOCAB, Train())), padded) < 1e-5


def test_the_flat_batch_is_the_rows_end_to_end() -> None:
    rows = rows_of(3)
    flat = collate_flat(rows, VOCAB, Train())
    texts = [row["prompt_token_ids"] + row["token_ids"] for row in rows]
    lengths = [len(text) for text in texts]
    assert flat["input_ids"].tolist() == [[token for text in texts for token in text]]
    assert flat["position_ids"].tolist() == [[place for length in lengths for place in range(length)]]
    assert flat["cu_seq_lens_q"].tolist() == [0, *np.cumsum(lengths).tolist()]
    assert flat["cu_seq_lens_q"].dtype == flat["cu_seq_lens_k"].dtype == torch.int32
    assert flat["max_length_q"] == flat["max_length_k"] == max(lengths)


@pytest.mark.parametrize("name", CONFIGS)
def test_padded_batches_of_a_model_so_set_are_as_before(name: str) -> None:
    batch = collate(rows_of(longest=40), 0, VOCAB, Train())
    assert batch["input_ids"].shape[1] > 16, "longer than the windows"
    before, model = losses_and_gradients(model_of(CONFIGS[name]), batch), model_of(CONFIGS[name])
    packed_attention.use(model, "float32")
    assert worst_difference(losses_and_gradients(model, batch), before) < 1e-6
    ids = batch["input_ids"][:1]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, model_of(CONFIGS[name])(ids).logits)
        cached = model.generate(ids, max_new_tokens=4, do_sample=False)
        assert torch.equal(cached, model_of(CONFIGS[name]).generate(ids, max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_an_answer_longer_than_the_models_window_sees_as_far_back_as_padded(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows = rows_of(longest=40)
    padded = losses_and_gradients(model_of(CONFIGS[name]), collate(rows, 0, VOCAB, Train()))
    model = model_of(CONFIGS[name])
    packed_attention.use(model, "float32")
    flat = collate_flat(rows, VOCAB, Train())
    assert flat["max_length_q"] > 16, "longer than the windows"
    assert worst_difference(losses_and_gradients(model, flat), padded) < 1e-5
    band = packed_attention._band
    monkeypatch.setattr(packed_attention, "_band", lambda num, window, device: band(num, num, device))
    assert worst_difference(losses_and_gradients(model, flat), padded) > 1e-4, "the windows matter"


MOE: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "linear_num_value_heads": 2,
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gemma2Config(**SHAPE, **{**GEMMA, "attn_logit_softcapping": 50.0}), "gemma2 .* capped attention scores"),
        (GptOssConfig(**SHAPE, **MOE), "gpt_oss .* attention sinks"),
        (
            Qwen3NextConfig(**SHAPE, **LINEAR, layer_types=["linear_attention", "full_attention"]),
            "qwen3_next .* layers of linear_attention, which carry a state",
        ),
        (MambaConfig(vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=1), "mamba .* layers of"),
        (BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=1, n_head=2), "bloom .* no way to tell"),
    ],
)
def test_models_whose_answers_would_leak_are_refused(config: Any, message: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    before = model.config._attn_implementation
    with pytest.raises(UserError, match=f"a {message}.*set it to null"):
        packed_attention.use(model, "float32")
    assert model.config._attn_implementation == before
    with pytest.raises(UserError, match=f"a {message}.*set it to null"):
        packed_attention.check(config)  # before the first stage


def test_a_model_that_does_not_pass_the_ends_on_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CONFIGS["llama"])
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        monkeypatch.setattr(
            layer.self_attn, "forward", lambda *a, f=forward, **k: f(*a, **{n: k[n] for n in k if "cu_" not in n})
        )
    with pytest.raises(UserError, match="answers in one pack changed one another"):
        packed_attention.use(model, "float32")


def test_packing_leaves_no_trace_in_the_saved_model(tmp_path: Any) -> None:
    model = model_of(CONFIGS["llama"])
    packed_attention.use(model, "float32")
    model.save_pretrained(tmp_path)
    assert packed_attention.NAME not in (tmp_path / "config.json").read_text()


def answers_of(num: int = 200, per_shard: int = 10) -> Listed:
    rng = np.random.default_rng(3)
    sizes = rng.integers(5, 90, num)
    return Listed([{"prompt_token_ids": [1], "token_ids": [2] * (size - 1)} for size in sizes], per_shard)


def test_packs_hold_each_answer_once_of_one_window_and_no_more_than_their_room() -> None:
    answers = answers_of()
    packs, of_window = packing.plan(answers, 100, seed=0)
    assert sorted(n for pack in packs for n in pack) == list(range(200))
    sizes = np.array([answers.lengths[pack].sum() for pack in packs])
    assert sizes.max() <= 100
    assert sizes.mean() > 90, "first-fit decreasing leaves little room"
    assert len(packs) < 1.1 * np.ceil(answers.lengths.sum() / 100)
    windows = [
        {int(answers.index.shards[n]) for n in np.concatenate([packs[p] for p in members])}
        for members in (np.flatnonzero(of_window == w) for w in np.unique(of_window))
    ]
    assert [len(shards) for shards in windows] == [8, 8, 4]
    assert sum(len(shards) for shards in windows) == len(set.union(*windows))
    assert packing.plan(answers, 100, seed=0)[0] == packs
    assert packing.plan(answers, 100, seed=1)[0] != packs


def test_a_pack_smaller_than_an_answer_is_refused() -> None:
    answers = answers_of()
    longest = int(answers.lengths.max())
    with pytest.raises(
        UserError, match=rf"pack_tokens={longest - 1}: .* takes {longest} tokens .* set it to {longest}"
    ):
        items(answers, Train(pack_tokens=longest - 1))
    assert len(items(answers, Train(pack_tokens=longest)))


@pytest.mark.parametrize("pack_tokens", [None, 30])
def test_items_are_collated_with_the_rows_that_they_number(pack_tokens: int | None) -> None:
    rows, settings = rows_of(12), Train(pack_tokens=pack_tokens, batch_size=2)
    answers = Listed(rows, per_shard=3)
    dataset, seen = items(answers, settings), []
    order = list(sampler(dataset, settings))
    for first in range(0, len(order), 2):
        chosen: Any = [dataset[place] for place in order[first : first + 2]]
        batch = collate_items(chosen, answers, 0, VOCAB, settings)
        members = [rows[n] for item in chosen for n in item["rows"]]
        assert sum(item["length"] for item in chosen) == sum(answers.lengths[n] for i in chosen for n in i["rows"])
        assert len(batch["teacher_ids_NK"]) == sum(len(row["token_ids"]) for row in members)
        assert ("position_ids" in batch) == (pack_tokens is not None)
        wanted = collate_flat(members, VOCAB, settings) if pack_tokens else collate(members, 0, VOCAB, settings)
        assert torch.equal(batch["input_ids"], wanted["input_ids"])
        seen += [row["response_id"] for row in members]
    assert sorted(seen) == sorted(row["response_id"] for row in rows)

"""Each family's figures against its own logits: the head, the forced pass, fidelity, pruned layers, packed answers."""

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from support import families
from torch import Tensor

from pipeline import codec
from pipeline.config import Train
from pipeline.errors import UserError
from pipeline.evaluate import fidelity
from pipeline.evaluate.fidelity import preference
from pipeline.models import language_model, pruning
from pipeline.models.forward import forced, head, packed_attention
from pipeline.models.forward.forced import ForcedResponse
from pipeline.train import student
from pipeline.train.batches import collate, collate_flat
from pipeline.train.losses import token_losses

VOCAB, K = 300, 6
KEPT = [0, 2]
WINDOW = 16  # of the families whose layers slide; the answers packed here are shorter
# What a family can't do, and why: what it is refused with.
NEVER_PACKED = {
    "gemma2": "attention to packed answers does not support capped attention scores",
    "gpt-oss": "attention to packed answers does not support attention sinks",
    "llama4-text": "it has layers of chunked_attention",
    "llama4": "it has layers of chunked_attention",
    "stablelm": "in a trial, answers in one pack changed one another",  # transformers' does not hand on where they end
    "nemotron": "in a trial, answers in one pack changed one another",
}
NEVER_PRUNED: dict[str, str] = {}


@functools.cache
def built(name: str, seed: int = 0) -> Any:
    """The language model of a family, shared by the tests, which leave it as it is."""
    return language_model._alone(families.build(name, VOCAB, seed), name)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Work this small is slower when cores share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=families.FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def tokens(num: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (1, num), generator=torch.Generator().manual_seed(seed))


def texts() -> list[ForcedResponse]:
    """Of several lengths, so that a batch is padded."""
    rows = [tokens(length, length)[0].tolist() for length in (9, 24, 14)]
    return [ForcedResponse(str(place), ids[:4], ids[4:]) for place, ids in enumerate(rows)]


@torch.no_grad()
def own_logprobs(model: Any, text: ForcedResponse) -> Tensor:
    """Before each answer token, of the whole vocabulary, from the model's own logits: (N, V), float64."""
    ids = torch.tensor([text.prompt_token_ids + text.token_ids])
    return model(input_ids=ids).logits[0, len(text.prompt_token_ids) - 1 : -1].double().log_softmax(dim=1)


# --- the head


def test_the_head_is_the_models_own(name: str) -> None:
    model = built(name)
    head.prove(model, name)
    language_model.on_meta(model.config, name)
    with torch.no_grad():
        own_NV, hidden_NH = model(tokens(20)).logits[0], head.decoder_of(model)(tokens(20)).last_hidden_state[0]
    torch.testing.assert_close(head.dense_logits(hidden_NH, head.head_of(model)), own_NV, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.logits(hidden_NH, head.head_of(model)), own_NV, rtol=1e-4, atol=1e-4)


def test_gradients_of_the_sparse_head_are_those_of_the_models_own_logits(name: str) -> None:
    has_experts = any(weight.dim() == 3 for weight in built(name).parameters())  # multiplied in float32 at most
    model = copy.deepcopy(built(name)).to(torch.float32 if has_experts else torch.float64)
    near: Any = {"rtol": 1e-3, "atol": 1e-4} if has_experts else {"rtol": 1e-6, "atol": 1e-8}
    generator = torch.Generator().manual_seed(1)
    ids_NK = torch.stack([torch.randperm(VOCAB, generator=generator)[:K] for _ in range(11)])
    labels_N, factors = tokens(12)[0, 1:], torch.randn(11, K + 2, generator=generator)

    def gradients(values: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        (values * factors).sum().backward()
        return {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}

    own_NV = model(tokens(12)).logits[0, :-1].log_softmax(dim=1)
    outside_NV = torch.ones_like(own_NV, dtype=torch.bool).scatter(1, ids_NK, False)
    tail_N = (own_NV.exp() * outside_NV).sum(dim=1).log()
    own = torch.cat([own_NV.gather(1, ids_NK), tail_N[:, None], own_NV.gather(1, labels_N[:, None])], dim=1)
    wanted = gradients(own)
    hidden_NH = head.decoder_of(model)(tokens(12)).last_hidden_state[0, :-1]
    sparse = head.support_logprobs(hidden_NH, head.head_of(model), ids_NK, labels_N, 4)
    ours = torch.cat([sparse.support_NK, sparse.log_tail_N[:, None], sparse.label_N[:, None]], dim=1)
    torch.testing.assert_close(ours, own, **near)
    got = gradients(ours)
    assert got.keys() == wanted.keys()
    assert len(got) == len(list(model.parameters())), "processes wait for a gradient of each"
    for key, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[key], **near)


@torch.no_grad()
def test_a_loaded_model_attends_as_its_authors_wrote(tmp_path: Path, name: str) -> None:
    families.make(name, tmp_path, VOCAB)
    model = language_model.load(tmp_path, torch.float32, name)
    ours_NV = model(tokens(24)).logits[0]
    model.set_attn_implementation("eager")
    torch.testing.assert_close(ours_NV, model(tokens(24)).logits[0], rtol=1e-3, atol=1e-3)


# --- the forced pass, and what rests on it


@torch.no_grad()
def test_forced_logprobs_and_their_means_are_those_of_the_models_own_logits(name: str) -> None:
    model, batch = built(name), texts()
    hidden_NH, owner_N = forced.answer_states(model, batch)
    got_NV = forced.logprobs(head.head_of(model), hidden_NH, VOCAB, torch.device("cpu")).double()
    wanted = [own_logprobs(model, text) for text in batch]
    torch.testing.assert_close(got_NV, torch.cat(wanted), rtol=0, atol=1e-4)
    assert np.bincount(owner_N).tolist() == [len(text.token_ids) for text in batch]
    means = [
        float(of.gather(1, torch.tensor(t.token_ids)[:, None]).mean()) for of, t in zip(wanted, batch, strict=True)
    ]
    assert preference.mean_logprobs_nats(model, batch, 4096) == pytest.approx(means, abs=1e-4)


def test_fidelity_is_that_of_the_models_own_logits_and_none_is_lost_by_a_copy(name: str) -> None:
    teacher, other = built(name), built(name, seed=1)
    sums = fidelity.measure(teacher, {"copy": copy.copy(teacher), "other": other}, texts(), 4096)
    num = sums["copy"].num_tokens().sum()
    assert abs(sums["copy"].of("forward_kl_nats").sum() / num) < 1e-6
    assert sums["copy"].of("acceptance_frac").sum() / num == pytest.approx(1, abs=1e-6)
    pairs = {text.cluster: (own_logprobs(teacher, text), own_logprobs(other, text)) for text in texts()}
    wanted = {cluster: float((p.exp() * (p - q)).sum()) for cluster, (p, q) in pairs.items()}
    measured = dict(zip(sums["other"].prompts(), sums["other"].of("forward_kl_nats").tolist(), strict=True))
    assert measured == pytest.approx(wanted, rel=1e-3)
    assert sum(wanted.values()) / num > 0.1, "two models that differ"


# --- pruned, packed


def test_a_pruned_model_loads_as_the_whole_one_that_leaves_layers_out(tmp_path: Path, name: str) -> None:
    model = copy.deepcopy(built(name))
    ids = tokens(24)  # beyond the windows
    if name in NEVER_PRUNED:
        with pytest.raises(UserError, match=NEVER_PRUNED[name]):
            pruning.keep_layers(model, KEPT)
        return
    layers = pruning.layers_of(model)
    dropped = [layer for place, layer in enumerate(layers) if place not in KEPT]
    handles = [layer.register_forward_hook(lambda _, args, output: passed_on(args, output)) for layer in dropped]
    with torch.no_grad():
        whole = built(name)(ids).logits
        wanted = model(ids).logits
        for handle in handles:
            handle.remove()
        pruned: Any = pruning.keep_layers(model, KEPT)
        assert not torch.allclose(wanted, whole, atol=1e-2)
        torch.testing.assert_close(pruned(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        pruned.save_pretrained(tmp_path)
        loaded: Any = student.load(tmp_path)
        torch.testing.assert_close(loaded(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        loaded.generate(ids, max_new_tokens=3, do_sample=False)  # the cache is indexed by layer


def passed_on(args: Any, output: Any) -> Any:
    return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]


def rows() -> list[dict[str, Any]]:
    """Answers with random stored rows, each shorter than a window."""
    rng, made = np.random.default_rng(0), []
    for n in range(5):
        P, A = 1 + n % 3, 3 + 2 * n
        ids_NK = np.array([rng.choice(VOCAB, K, replace=False) for _ in range(A)], np.int32)
        logits_NK = rng.normal(size=(A, K + 1))
        logprobs_NK = (logits_NK - np.logaddexp.reduce(logits_NK, axis=1, keepdims=True)).astype(np.float32)
        made.append(
            {
                "response_id": f"r{n}",
                "prompt_token_ids": rng.integers(3, VOCAB, P).tolist(),
                "token_ids": rng.integers(3, VOCAB, A).tolist(),
                "logprobs": codec.encode(ids_NK, logprobs_NK[:, :K], logprobs_NK[:, K]),
                **dict.fromkeys(("reasoning_tokens", "reasoning_start", "reasoning_end"), 0),
                "masked_spans": [],
            }
        )
    return made


def losses_and_gradients(model: Any, batch: dict[str, Any]) -> list[Tensor]:
    losses = token_losses(model.eval(), batch, Train(head_chunk_tokens=7))
    torch.stack([each.mean() for each in losses]).sum().backward()
    return [each.detach() for each in losses] + [p.grad for p in model.parameters() if p.grad is not None]


def test_packed_answers_teach_what_padded_ones_do(name: str) -> None:
    padded, packed = copy.deepcopy(built(name)), copy.deepcopy(built(name))
    if name in NEVER_PACKED:
        for attempt in (lambda: packed_attention.check(packed.config), lambda: packed_attention.use(packed, "float32")):
            with pytest.raises(UserError, match=rf"train\.pack_tokens: {NEVER_PACKED[name]}"):
                attempt()
        return
    packed_attention.check(packed.config)  # before the first stage
    packed_attention.use(packed, "float32")
    wanted = losses_and_gradients(padded, collate(rows(), 0, VOCAB, Train()))
    got = losses_and_gradients(packed, collate_flat(rows(), VOCAB, Train()))
    assert len(got) == len(wanted) > 3
    for ours, theirs in zip(got, wanted, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-4 * (1 + float(theirs.abs().max()))


# --- models that see


SEEING = [name for name, family in families.FAMILIES.items() if family.vision]


@pytest.mark.parametrize("name", SEEING)
def test_of_a_model_that_sees_its_language_model_is_taken(tmp_path: Path, name: str) -> None:
    whole = families.build(name, VOCAB)
    whole.save_pretrained(tmp_path / "whole")
    alone: Any = student.load(tmp_path / "whole")
    alone.save_pretrained(tmp_path / "alone")
    saved: Any = student.load(tmp_path / "alone")
    text = whole.config.get_text_config()
    assert type(saved).__name__.endswith("ForCausalLM")
    assert saved.config.get_text_config() is saved.config
    assert (saved.config.vocab_size, saved.config.num_hidden_layers) == (VOCAB, text.num_hidden_layers)
    assert (saved.config.eos_token_id, saved.generation_config.eos_token_id) == (2, 2)
    assert {key.partition(".")[0] for key in saved.state_dict()} == {"model", "lm_head"}
    with torch.no_grad():
        own, ours = whole(tokens(24)).logits, saved(tokens(24)).logits
        torch.testing.assert_close(alone(tokens(24)).logits, ours)
    if name == "aya-vision":  # transformers' own leaves the scale out, which vLLM has
        own = own * text.logit_scale
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)
    losses_and_gradients(saved, collate(rows(), 0, VOCAB, Train()))
    assert all(weight.grad is not None for weight in saved.parameters()), "processes train together"


# --- models that are too large for their device


@pytest.mark.parametrize("where", [cpu_offload, disk_offload])
@pytest.mark.parametrize("name", ["gemma2", "phi", "llama-tied", "gemma3"])
def test_weights_that_accelerate_keeps_elsewhere_are_fetched(tmp_path: Path, name: str, where: Any) -> None:
    """As device_map does to what does not fit: the head's weights, too, are on no device between two uses."""
    whole = families.build(name, VOCAB)
    place = {} if where is cpu_offload else {"offload_dir": tmp_path}
    where(whole, execution_device=torch.device("cpu"), **place)
    model = language_model._alone(whole, name)
    assert model.get_output_embeddings().weight.is_meta
    head.prove(model, name)
    for teacher, arm in ((built(name), model), (model, built(name))):
        sums = fidelity.measure(teacher, {"arm": arm}, texts(), 4096)["arm"]
        assert abs(sums.of("forward_kl_nats")).max() < 1e-5
        assert sums.of("acceptance_frac").sum() == pytest.approx(sums.num_tokens().sum(), abs=1e-4)
    means = [preference.mean_logprobs_nats(of, texts(), 4096) for of in (model, built(name))]
    assert means[0] == pytest.approx(means[1], abs=1e-5)
    assert model.get_output_embeddings().weight.is_meta

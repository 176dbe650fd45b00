"""The sparse head against an independent dense reference in float64."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from pipeline.errors import UserError
from pipeline.models.forward import head
from pipeline.models.forward.head import Head, entropy_and_best, support_logprobs
from pipeline.train.losses.divergences import buckets, forward_kl_nats

N, K, V, H = 7, 4, 23, 5


def problem(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden_NH = torch.randn(N, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight_VH = torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    ids_NK = torch.stack([torch.randperm(V, generator=generator)[:K] for _ in range(N)])
    labels_N = torch.randint(V, (N,), generator=generator)
    labels_N[0] = ids_NK[0, 1]  # one label inside the support
    labels_N[1] = next(j for j in range(V) if j not in ids_NK[1])  # and one outside it
    return hidden_NH, weight_VH, ids_NK, labels_N


def dense(hidden_NH: Tensor, weight_VH: Tensor, ids_NK: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logprobs_NV = (hidden_NH @ weight_VH.T).log_softmax(dim=1)
    outside_NV = torch.ones_like(logprobs_NV, dtype=torch.bool).scatter(1, ids_NK, False)
    log_tail_N = (logprobs_NV.exp() * outside_NV).sum(dim=1).log()
    return logprobs_NV.gather(1, ids_NK), log_tail_N, logprobs_NV[torch.arange(len(labels_N)), labels_N]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_values_equal_the_dense_reference(chunk: int) -> None:
    hidden, weight, ids, labels = problem()
    for got, wanted in zip(
        support_logprobs(hidden, Head(weight), ids, labels, chunk), dense(hidden, weight, ids, labels), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [2, 100])
def test_gradients_of_a_mixed_loss_equal_the_dense_reference(chunk: int) -> None:
    hidden, weight, ids, labels = problem(1)
    teacher_NV = torch.randn(N, V, dtype=torch.float64).log_softmax(dim=1)
    teacher_NK = teacher_NV.gather(1, ids)
    teacher_tail_N = torch.log1p(-teacher_NK.exp().sum(dim=1))

    def loss(support_NK: Tensor, log_tail_N: Tensor, label_N: Tensor) -> Tensor:
        return (forward_kl_nats(*buckets(teacher_NK, teacher_tail_N, support_NK, log_tail_N)) - 0.3 * label_N).sum()

    wanted = torch.autograd.grad(loss(*dense(hidden, weight, ids, labels)), (hidden, weight))
    got = torch.autograd.grad(loss(*support_logprobs(hidden, Head(weight), ids, labels, chunk)), (hidden, weight))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_an_id_that_stands_twice_gets_the_sum_of_its_gradients() -> None:
    """The fill of a short row: its first id again, without teacher mass; or with any other weight."""
    hidden, weight, ids, labels = problem(3)
    doubled = torch.cat([ids, ids[:, :1].expand(-1, 2)], dim=1)
    for factors in (torch.tensor([1.0, 1, 1, 1, 0, 0]), torch.randn(6)):
        wanted_loss = [value * factors[:4].double() for value in dense(hidden, weight, ids, labels)[:1]]
        extra = dense(hidden, weight, ids, labels)[0][:, :1] * factors[4:].double().sum()
        wanted = torch.autograd.grad(wanted_loss[0].sum() + extra.sum(), (hidden, weight))
        support_NK, log_tail_N, _ = support_logprobs(hidden, Head(weight), doubled, labels, 3)
        got = torch.autograd.grad((support_NK * factors.double()).sum(), (hidden, weight))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(log_tail_N, dense(hidden, weight, ids, labels)[1])


def test_gradcheck() -> None:
    hidden, weight, ids, labels = problem(2)
    assert torch.autograd.gradcheck(
        lambda h, w: tuple(support_logprobs(h, Head(w), ids, labels, 3)), (hidden, weight), atol=1e-7
    )


def test_a_tiny_tail_keeps_its_digits_in_float32() -> None:
    hidden_NH = torch.tensor([[1.0]])
    weight_VH = torch.tensor([[40.0], [0.0], [0.0]])  # the tail of {0} is 2·e⁻⁴⁰: 1 − Σ would be 0
    got = support_logprobs(hidden_NH, Head(weight_VH), torch.tensor([[0]]), torch.tensor([0]), 8)
    assert got.log_tail_N.item() == pytest.approx(-40 + 0.6931472, rel=1e-6)


def test_a_support_of_the_whole_vocabulary_has_finite_gradients() -> None:
    hidden, weight, _, labels = problem(3)
    ids_NV = torch.arange(V).repeat(N, 1)
    got = support_logprobs(hidden, Head(weight), ids_NV, labels, 4)
    teacher_NV = torch.randn(N, V, dtype=torch.float64).log_softmax(dim=1)
    no_tail_N = torch.full((N,), -torch.inf, dtype=torch.float64)
    forward_kl_nats(*buckets(teacher_NV, no_tail_N, got.support_NK, got.log_tail_N)).sum().backward()
    assert hidden.grad is not None
    wanted = (hidden @ weight.T).log_softmax(dim=1).exp() - teacher_NV.exp()
    torch.testing.assert_close(hidden.grad, wanted @ weight)


SHAPES = {"scale": 0.25, "softcap": 3.0, "temperature": 2.0}


@pytest.mark.parametrize("changes", [{name: SHAPES[name]} for name in SHAPES] + [SHAPES])
@pytest.mark.parametrize("has_bias", [False, True])
def test_bias_scale_softcap_and_temperature_equal_the_dense_reference(changes: dict, has_bias: bool) -> None:
    hidden, weight, ids, labels = problem(6)
    bias_V = torch.randn(V, dtype=torch.float64).requires_grad_() if has_bias else None
    factors = torch.randn(N, K + 2, dtype=torch.float64)

    def reference() -> Tensor:
        raw_NV = hidden @ weight.T + (0 if bias_V is None else bias_V)
        scaled_NV = raw_NV * changes.get("scale", 1.0)
        cap = changes.get("softcap")
        capped_NV = scaled_NV if cap is None else cap * torch.tanh(scaled_NV / cap)
        logprobs_NV = (capped_NV / changes.get("temperature", 1.0)).log_softmax(dim=1)
        outside_NV = torch.ones_like(logprobs_NV, dtype=torch.bool).scatter(1, ids, False)
        tail_N = (logprobs_NV.exp() * outside_NV).sum(dim=1).log()
        return torch.cat([logprobs_NV.gather(1, ids), tail_N[:, None], logprobs_NV.gather(1, labels[:, None])], dim=1)

    got = support_logprobs(hidden, Head(weight, bias_V, **changes), ids, labels, 3)
    values = torch.cat([got.support_NK, got.log_tail_N[:, None], got.label_N[:, None]], dim=1)
    torch.testing.assert_close(values, reference(), rtol=1e-10, atol=1e-12)
    leaves = [hidden, weight] + ([bias_V] if bias_V is not None else [])
    wanted = torch.autograd.grad((reference() * factors).sum(), leaves)
    for a, b in zip(torch.autograd.grad((values * factors).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda *x: tuple(support_logprobs(x[0], Head(x[1], x[2] if has_bias else None, **changes), ids, labels, 3)),
        leaves,
    )


def test_an_empty_support_leaves_the_label_and_all_mass_in_the_tail() -> None:
    hidden, weight, ids, labels = problem(7)
    got = support_logprobs(hidden, Head(weight), ids[:, :0], labels, 3)
    torch.testing.assert_close(got.label_N, dense(hidden, weight, ids, labels)[2])
    torch.testing.assert_close(got.log_tail_N, torch.zeros(N, dtype=torch.float64), atol=1e-12, rtol=0)
    [wanted] = torch.autograd.grad(dense(hidden, weight, ids, labels)[2].sum(), hidden)
    torch.testing.assert_close(torch.autograd.grad(got.label_N.sum(), hidden)[0], wanted)


def test_no_positions_give_no_values_and_no_gradient() -> None:
    hidden, weight, ids, labels = problem(8)
    got = support_logprobs(hidden[:0], Head(weight), ids[:0], labels[:0], 3)
    (got.support_NK.sum() + got.label_N.sum()).backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_a_frozen_head_gets_no_gradient_and_the_states_theirs() -> None:
    hidden, weight, ids, labels = problem(9)
    [wanted] = torch.autograd.grad(support_logprobs(hidden, Head(weight), ids, labels, 3).label_N.sum(), hidden)
    frozen = weight.detach()
    got = support_logprobs(hidden, Head(frozen), ids, labels, 3).label_N
    assert torch.equal(torch.autograd.grad(got.sum(), hidden)[0], wanted)


@pytest.mark.parametrize("chunk", [2, 100])
def test_entropy_and_best_token(chunk: int) -> None:
    hidden, weight, _, _ = problem(10)
    logprobs_NV = (hidden @ weight.T).log_softmax(dim=1)
    entropy_N, best_N = entropy_and_best(hidden, Head(weight), chunk)
    torch.testing.assert_close(entropy_N, -(logprobs_NV.exp() * logprobs_NV).sum(dim=1))
    assert torch.equal(best_N, logprobs_NV.argmax(dim=1))


def test_no_tensor_of_tokens_times_vocabulary_outlives_a_chunk() -> None:
    hidden, weight, ids, labels = problem(4)
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        support_logprobs(hidden, Head(weight), ids, labels, 2)
    assert saved
    assert (N, V) not in saved


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32() -> None:
    hidden, weight, ids, labels = problem(5, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = support_logprobs(hidden, Head(weight), ids, labels, 3)
    exact = support_logprobs(hidden, Head(weight), ids, labels, 3)
    assert rough.support_NK.dtype == torch.float32
    assert not torch.equal(rough.support_NK, exact.support_NK)
    torch.testing.assert_close(rough.support_NK, exact.support_NK, atol=0.1, rtol=0.05)
    rough.label_N.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_logits_that_were_rounded_and_are_told_in_float32_are_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of Nemotron-H on a GPU, where our product is not rounded; a scale that is left out is still seen."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 200, bias=False, dtype=torch.bfloat16)
    model = SimpleNamespace(get_output_embeddings=lambda: layer, config=LlamaConfig())
    hidden_NH = 8 * torch.randn(32, 64, dtype=torch.bfloat16)
    monkeypatch.setattr(head, "_product", lambda left, right: left.float() @ right.float())
    with torch.no_grad():
        own_NV = layer(hidden_NH).float()
    head.check_logits(model, own_NV, hidden_NH, "a model")
    with pytest.raises(UserError, match="in a way that Retort does not know"):
        head.check_logits(model, 1.1 * own_NV, hidden_NH, "a model")

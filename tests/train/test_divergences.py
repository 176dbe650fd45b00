"""Each divergence against its formula written out over probabilities in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.config import Divergence, Train
from pipeline.train.losses import divergences
from pipeline.train.losses.divergences import buckets, chosen, forward_kl_nats

NAMES = list(Divergence.__args__)


def distributions(seed: int = 0, num: int = 6, vocab: int = 11, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = (sharpness * torch.randn(2, num, vocab, generator=generator, dtype=torch.float64)).log_softmax(dim=2)
    return drawn[0], drawn[1]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(dim=1)


BY_HAND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
    "skew_forward_kl": lambda p, q: kl(p, 0.2 * p + 0.8 * q),
    "skew_reverse_kl": lambda p, q: kl(q, 0.2 * q + 0.8 * p),
    "total_variation": lambda p, q: (p - q).clamp(min=0).sum(dim=1),
    "alpha_beta": lambda p, q: -(p**0.2 * q**0.3 - 0.2 / 0.5 * p**0.5 - 0.3 / 0.5 * q**0.5).sum(dim=1) / (0.2 * 0.3),
}


def settings_of(name: str) -> Train:
    changes = {"alpha": 0.2} if name in ("skew_forward_kl", "skew_reverse_kl", "alpha_beta") else {}
    changes |= {"beta": 0.3} if name in ("jsd", "alpha_beta") else {}
    return Train.model_validate({"divergence": name, **changes})


def test_every_name_of_the_config_is_a_divergence() -> None:
    assert set(BY_HAND) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_its_formula(name: str) -> None:
    p_NV, q_NV = distributions()
    torch.testing.assert_close(chosen(settings_of(name))(p_NV, q_NV), BY_HAND[name](p_NV.exp(), q_NV.exp()))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_zero_for_equal_distributions_and_positive_otherwise(name: str) -> None:
    p_NV, q_NV = distributions(1)
    divergence = chosen(Train.model_validate({"divergence": name}))
    assert divergence(p_NV, p_NV).abs().max() < 1e-14
    assert divergence(p_NV, q_NV).min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_bucket_without_mass_adds_nothing_and_has_a_finite_gradient(name: str) -> None:
    p_NV, q_NV = distributions(2)
    divergence = chosen(settings_of(name))
    empty_N1 = torch.full((6, 1), -torch.inf, dtype=torch.float64)
    logits_NV = q_NV.clone().requires_grad_()
    wider = divergence(torch.cat([p_NV, empty_N1], dim=1), torch.cat([logits_NV.log_softmax(dim=1), empty_N1], dim=1))
    torch.testing.assert_close(wider, divergence(p_NV, q_NV))
    [got] = torch.autograd.grad(wider.sum(), logits_NV)
    [wanted] = torch.autograd.grad(divergence(p_NV, logits_NV.log_softmax(dim=1)).sum(), logits_NV)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_merging_a_tail_never_raises_it(name: str) -> None:
    p_NV, q_NV = distributions(3, 50, 30, 3.0)
    merged = [torch.cat([x[:, :8], x[:, 8:].logsumexp(dim=1, keepdim=True)], dim=1) for x in (p_NV, q_NV)]
    divergence = chosen(settings_of(name))
    if name == "alpha_beta":  # α + β ≠ 1: no f-divergence, for which alone the inequality holds
        divergence = chosen(Train(divergence="alpha_beta", alpha=0.4, beta=0.6))
    assert (divergence(*merged) <= divergence(p_NV, q_NV) + 1e-12).all()


def test_alpha_beta_tends_to_the_two_kls() -> None:
    p_NV, q_NV = distributions(4)
    near = divergences.alpha_beta(p_NV, q_NV, 1 - 1e-6, 1e-6), divergences.alpha_beta(p_NV, q_NV, 1e-6, 1 - 1e-6)
    torch.testing.assert_close(near[0], forward_kl_nats(p_NV, q_NV), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(near[1], forward_kl_nats(q_NV, p_NV), rtol=1e-4, atol=1e-4)


def test_the_fill_of_a_short_row_has_no_mass_with_the_student_either() -> None:
    teacher_NK = torch.tensor([[-0.7, -1.2, -torch.inf, -torch.inf]])
    student_NK = torch.tensor([[-0.5, -1.5, -0.5, -0.5]])  # the fill's id is the row's first
    tails = torch.tensor([-1.6]), torch.tensor([-1.5])
    wide = buckets(teacher_NK, tails[0], student_NK, tails[1])
    narrow = buckets(teacher_NK[:, :2], tails[0], student_NK[:, :2], tails[1])
    for name in NAMES:
        divergence = chosen(settings_of(name))
        torch.testing.assert_close(divergence(*wide), divergence(*narrow))


def test_a_teacher_without_tail_costs_nothing_there() -> None:
    pair = buckets(
        torch.tensor([[0.25, 0.75]]).log(),
        torch.tensor([-torch.inf]),
        torch.tensor([[0.2, 0.6]]).log(),
        torch.tensor([0.2]).log(),
    )
    torch.testing.assert_close(forward_kl_nats(*pair), torch.tensor([0.2231436]))

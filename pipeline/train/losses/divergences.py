"""Divergences between teacher and student over the same buckets: the stored support and its tail, or the vocabulary.

Each takes log-probs of shape (N, C), nats, and gives N values, nats where not said otherwise. A bucket at −inf has no
mass and adds nothing. Axes: N tokens, K stored support, C buckets (K + 1, or V).
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.config import Train

LOG_ZERO = -80.0  # stands for −inf, so that no gradient is 0 · ∞; e⁻⁸⁰ is a float32


def buckets(
    teacher_NK: Tensor, teacher_log_tail_N: Tensor, support_NK: Tensor, log_tail_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Teacher's and student's K + 1 buckets, `(teacher_NC, student_NC)`.

    An entry that the teacher's row does not have (−inf: the fill of short rows) has no mass with the student either:
    its id stands in the row already. Merging what is outside into one bucket can only lower a divergence
    (data-processing inequality).
    """
    support_NK = support_NK.masked_fill(torch.isneginf(teacher_NK), -torch.inf)
    return (
        torch.cat([teacher_NK, teacher_log_tail_N[:, None]], dim=1),
        torch.cat([support_NK, log_tail_N[:, None]], dim=1),
    )


def forward_kl_nats(teacher_NC: Tensor, student_NC: Tensor) -> Tensor:
    """KL(teacher ‖ student) = Σ p·(log p − log q). It has the teacher's entropy in it, so 0 is its floor.

    Hinton et al. 2015, arXiv:1503.02531.
    """
    p_NC, q_NC = _finite(teacher_NC), _finite(student_NC)
    return (p_NC.exp() * (p_NC - q_NC)).sum(dim=1)


def reverse_kl_nats(teacher_NC: Tensor, student_NC: Tensor) -> Tensor:
    """KL(student ‖ teacher): seeks the teacher's modes. Gu et al. 2024 (MiniLLM), arXiv:2306.08543."""
    return forward_kl_nats(student_NC, teacher_NC)


def jsd_nats(teacher_NC: Tensor, student_NC: Tensor, beta: float = 0.5) -> Tensor:
    """β·KL(p ‖ m) + (1 − β)·KL(q ‖ m), m = β·p + (1 − β)·q. Agarwal et al. 2024 (GKD), arXiv:2306.13649."""
    mixture_NC = _mixture(teacher_NC, student_NC, beta)
    return beta * forward_kl_nats(teacher_NC, mixture_NC) + (1 - beta) * forward_kl_nats(student_NC, mixture_NC)


def skew_forward_kl_nats(teacher_NC: Tensor, student_NC: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(p ‖ α·p + (1 − α)·q). Ko et al. 2024 (DistiLLM), arXiv:2402.03898."""
    return forward_kl_nats(teacher_NC, _mixture(teacher_NC, student_NC, alpha))


def skew_reverse_kl_nats(teacher_NC: Tensor, student_NC: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(q ‖ α·q + (1 − α)·p). Ko et al. 2024 (DistiLLM), arXiv:2402.03898."""
    return forward_kl_nats(student_NC, _mixture(student_NC, teacher_NC, alpha))


def total_variation(teacher_NC: Tensor, student_NC: Tensor) -> Tensor:
    """½·Σ|p − q|, 0-1: one less the acceptance of speculative decoding. Wen et al. 2023, arXiv:2307.15190."""
    return (teacher_NC.exp() - student_NC.exp()).abs().sum(dim=1) / 2


def alpha_beta(teacher_NC: Tensor, student_NC: Tensor, alpha: float = 0.2, beta: float = 0.7) -> Tensor:
    """−1/(αβ)·Σ(pᵅqᵝ − α/(α+β)·pᵅ⁺ᵝ − β/(α+β)·qᵅ⁺ᵝ), which tends to forward KL at (1, 0) and to reverse KL at (0, 1).

    No unit of its own. Wang et al. 2025 (ABKD), arXiv:2505.04560.
    """
    p_NC, q_NC = _finite(teacher_NC), _finite(student_NC)
    total = alpha + beta
    both_NC = torch.exp(alpha * p_NC + beta * q_NC)
    own_NC = (alpha * torch.exp(total * p_NC) + beta * torch.exp(total * q_NC)) / total
    has_mass_NC = ~(torch.isneginf(teacher_NC) & torch.isneginf(student_NC))
    return ((own_NC - both_NC) * has_mass_NC).sum(dim=1) / (alpha * beta)


def chosen(settings: Train) -> Callable[[Tensor, Tensor], Tensor]:
    """The divergence that the settings name, with their parameters in it."""
    parameters = {name: getattr(settings, name) for name in ("alpha", "beta") if getattr(settings, name) is not None}
    functions: dict[str, Callable[..., Tensor]] = {
        "forward_kl": forward_kl_nats,
        "reverse_kl": reverse_kl_nats,
        "jsd": jsd_nats,
        "skew_forward_kl": skew_forward_kl_nats,
        "skew_reverse_kl": skew_reverse_kl_nats,
        "total_variation": total_variation,
        "alpha_beta": alpha_beta,
    }
    return functools.partial(functions[settings.divergence], **parameters)


def _finite(logprobs_NC: Tensor) -> Tensor:
    return logprobs_NC.masked_fill(torch.isneginf(logprobs_NC), LOG_ZERO)


def _mixture(first_NC: Tensor, second_NC: Tensor, share: float) -> Tensor:
    """log(share·p + (1 − share)·q)."""
    if share == 1:
        return first_NC
    p_NC, q_NC = _finite(first_NC), _finite(second_NC)
    return torch.logaddexp(p_NC + math.log(share), q_NC + math.log1p(-share))

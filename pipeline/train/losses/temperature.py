"""Softer or harder distributions, p^(1/T) normalised: exact for the student, by an assumption for what is stored.

Axes: N tokens, K stored support, V vocabulary.
"""

import math

import torch
from torch import Tensor

# How many equally likely tokens the mass outside the support is taken to be spread over. Exact at T = 1 whatever it
# is; the demo teacher's tail with 50 stored is like 1,300 at T = 1.5, 2,400 at 2, 5,600 at 3 (geometric means;
# scripts/bench/kd_quality.py --only temperature).
TAIL_TOKENS = 2400


def tempered(logprobs_NK: Tensor, log_tail_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The stored buckets at a temperature, nats: log-probs over T, the tail as TAIL_TOKENS tokens of equal share.

    The sum of M equal shares of a mass t, each to the power 1/T, is t^(1/T) · M^(1 − 1/T).
    """
    support_NK = logprobs_NK / temperature
    tail_N = log_tail_N / temperature + (1 - 1 / temperature) * math.log(TAIL_TOKENS)
    normaliser_N = torch.logaddexp(support_NK.logsumexp(dim=1), tail_N)
    return support_NK - normaliser_N[:, None], tail_N - normaliser_N


def tail_tokens(logprobs_NV: Tensor, ids_NK: Tensor, temperature: float) -> Tensor:
    """The number of equal tokens by which `tempered` would be exact, shape (N,); what TAIL_TOKENS stands for."""
    outside_NV = logprobs_NV.scatter(1, ids_NK, -torch.inf)
    log_mass_N, log_powers_N = outside_NV.logsumexp(dim=1), (outside_NV / temperature).logsumexp(dim=1)
    return torch.exp((log_powers_N - log_mass_N / temperature) / (1 - 1 / temperature))


def tempering_error_nats(
    logits_NV: Tensor, ids_NK: Tensor, logprobs_NK: Tensor, log_tail_N: Tensor, temperature: float
) -> Tensor:
    """KL(exact ‖ tempered) over the K + 1 buckets, shape (N,), of the teacher's own logits."""
    exact_NV = (logits_NV / temperature).log_softmax(dim=1)
    exact_tail_N = exact_NV.scatter(1, ids_NK, -torch.inf).logsumexp(dim=1)
    guess_NK, guess_tail_N = tempered(logprobs_NK, log_tail_N, temperature)
    is_entry_NK = ~torch.isneginf(logprobs_NK)
    exact_NK = exact_NV.gather(1, ids_NK)
    inside_N = torch.where(is_entry_NK, exact_NK.exp() * (exact_NK - guess_NK), 0.0).sum(dim=1)
    return inside_N + exact_tail_N.exp() * (exact_tail_N - guess_tail_N)

"""Exact statements about a share: whether it differs from one half, and its interval."""

import math

import numpy as np


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p that wins and losses are equally likely: twice the smaller binomial tail, in whole numbers."""
    num = wins + losses
    ways, tail = 1, 0  # of `num` pairs, k won; all at once as integers, so that no rounding adds up
    for k in range(min(wins, losses) + 1):
        tail += ways
        ways = ways * (num - k) // (k + 1)
    return min(1.0, 2 * tail / 2**num)


def clopper_pearson(successes: int, num: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson 1934): each end leaves 2.5 % beyond what was seen.

    It excludes one half exactly where the sign test has p < 0.05.
    """
    low = _share_with_tail(successes, num) if successes else 0.0
    high = 1 - _share_with_tail(num - successes, num) if successes < num else 1.0
    return low, high


def power_of_sign_test(num: int, discordant_frac: float, difference: float, level: float) -> float:
    """The chance that the exact sign test of `num` pairs has p < `level`.

    Each pair differs with probability `discordant_frac` by itself, up more often than down by `difference`, which is
    at most that. Enumerated over how many differ (D) and how many of these go up (U); what 8 standard deviations leave
    out is not counted.
    """
    spread = 8 * math.sqrt(num * discordant_frac * (1 - discordant_frac)) + 1
    low, high = max(0, math.floor(num * discordant_frac - spread)), min(num, math.ceil(num * discordant_frac + spread))
    differ_D1, ups_U = np.arange(low, high + 1)[:, None], np.arange(high + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num + 1)))])
    downs_DU = np.maximum(differ_D1 - ups_U, 0)
    log_ways_DU = log_factorial[differ_D1] - log_factorial[ups_U] - log_factorial[downs_DU]
    log_ways_DU[ups_U > differ_D1] = -np.inf
    tail_DU = np.cumsum(np.exp(log_ways_DU - differ_D1 * math.log(2)), axis=1)  # of so many ups or fewer
    num_few_D1 = (2 * tail_DU < level).sum(axis=1, keepdims=True)  # so few ups, or downs, are rejected
    is_rejected_DU = (ups_U < num_few_D1) | (downs_DU < num_few_D1)
    up = min(0.5 + difference / discordant_frac / 2, 1 - 1e-12)
    ups_prob_DU = np.exp(log_ways_DU + ups_U * math.log(up) + downs_DU * math.log1p(-up))
    differ, rest = min(discordant_frac, 1 - 1e-12), num - differ_D1[:, 0]
    log_differ_D = log_factorial[num] - log_factorial[differ_D1[:, 0]] - log_factorial[rest]
    log_differ_D += differ_D1[:, 0] * math.log(differ) + rest * math.log1p(-differ)
    return float((np.exp(log_differ_D) * (ups_prob_DU * is_rejected_DU).sum(axis=1)).sum())


def _share_with_tail(successes: int, num: int) -> float:
    """The share p at which `successes` or more of `num` have a probability of 2.5 %, by bisection."""
    log_ways = [math.lgamma(num + 1) - math.lgamma(k + 1) - math.lgamma(num - k + 1) for k in range(successes, num + 1)]
    low, high = 0.0, 1.0
    for _ in range(50):
        p = (low + high) / 2
        log_p, log_rest = math.log(p), math.log1p(-p)
        terms = (ways + k * log_p + (num - k) * log_rest for k, ways in enumerate(log_ways, successes))
        low, high = (p, high) if math.fsum(map(math.exp, terms)) < 0.025 else (low, p)
    return (low + high) / 2

"""Exact statements about a share: whether it differs from one half, and its interval."""

import math


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

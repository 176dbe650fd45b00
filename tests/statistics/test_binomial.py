"""The exact test and interval against every outcome counted, and against each other."""

import itertools
import math
from fractions import Fraction

import pytest

from pipeline.statistics.binomial import clopper_pearson, sign_test


@pytest.mark.parametrize("num", range(11))
def test_the_sign_test_equals_counting_every_outcome(num: int) -> None:
    outcomes = [abs(2 * sum(flips) - num) for flips in itertools.product((0, 1), repeat=num)]
    for wins in range(num + 1):
        as_far_off = sum(outcome >= abs(2 * wins - num) for outcome in outcomes)
        assert sign_test(wins, num - wins) == pytest.approx(as_far_off / 2**num)


def tail(successes: int, num: int, share: Fraction) -> float:
    """P(at least so many), exactly."""
    return float(sum(math.comb(num, k) * share**k * (1 - share) ** (num - k) for k in range(successes, num + 1)))


@pytest.mark.parametrize(("successes", "num"), [(0, 1), (1, 1), (3, 7), (8, 10), (0, 30), (29, 30), (40, 88)])
def test_each_end_of_the_interval_leaves_two_and_a_half_percent(successes: int, num: int) -> None:
    low, high = clopper_pearson(successes, num)
    if successes:
        assert tail(successes, num, Fraction(low)) == pytest.approx(0.025, rel=1e-9)
    else:
        assert low == 0
    if successes < num:
        assert 1 - tail(successes + 1, num, Fraction(high)) == pytest.approx(0.025, rel=1e-9)
    else:
        assert high == 1


def test_the_interval_covers_every_share_with_at_least_95_percent() -> None:
    num = 25
    intervals = [clopper_pearson(k, num) for k in range(num + 1)]
    for percent in range(1, 100):
        share = percent / 100
        chances = (math.comb(num, k) * share**k * (1 - share) ** (num - k) for k in range(num + 1))
        covered = [p for p, (low, high) in zip(chances, intervals, strict=True) if low <= share <= high]
        assert sum(covered) >= 0.95


def test_test_and_interval_never_disagree() -> None:
    for num in range(1, 60):
        for wins in range(num + 1):
            low, high = clopper_pearson(wins, num)
            assert (sign_test(wins, num - wins) < 0.05) == (not low <= 0.5 <= high)


def test_thousands_of_items_are_no_trouble() -> None:
    low, high = clopper_pearson(2400, 5000)
    assert 0.466 < low < 0.467
    assert 0.493 < high < 0.495
    assert sign_test(2400, 2600) == pytest.approx(0.00488, abs=2e-4)

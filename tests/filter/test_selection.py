"""Selection: the likeliest of several, and shares that hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filter.selection import best_of_n, difficulty_buckets, length_buckets, rank, within_share


def test_the_likeliest_answers_to_each_prompt_stay() -> None:
    prompts_N = np.array([7, 3, 7, 3, 7, 5])
    nll_N = np.array([0.9, 0.4, 0.2, 0.5, 0.2, 3.0])
    assert best_of_n(prompts_N, nll_N, 1).tolist() == [False, True, True, False, False, True]
    assert best_of_n(prompts_N, nll_N, 2).tolist() == [False, True, True, True, True, True]
    assert best_of_n(prompts_N[:0], nll_N[:0], 1).tolist() == []


def test_of_a_bucket_that_is_too_large_the_lowest_ranks_stay() -> None:
    buckets_N, ranks_N = np.array([0, 0, 0, 0, 1, 1]), np.array([4, 1, 3, 2, 9, 8])
    assert within_share(buckets_N, 0.5, ranks_N).tolist() == [False, True, False, True, True, True]
    assert within_share(buckets_N, 0.7, ranks_N).tolist() == [True] * 6


def test_too_few_buckets_for_the_share() -> None:
    with pytest.raises(ValueError, match=r"2 buckets can.t all be at most 0\.4 of"):
        within_share(np.array([0, 1, 1]), 0.4, np.arange(3))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.floats(0.15, 1.0))
def test_shares_hold_and_one_more_of_a_cut_bucket_would_break_them(buckets: list[int], max_frac: float) -> None:
    buckets_N = np.array(buckets)
    num_buckets = len(set(buckets))
    if num_buckets * max_frac < 1:
        return
    is_kept_N = within_share(buckets_N, max_frac, np.arange(len(buckets)))
    before, after = (np.bincount(each, minlength=7) for each in (buckets_N, buckets_N[is_kept_N]))
    assert after.max() <= max_frac * after.sum() + 1e-6
    cut = before > after
    if cut.any():
        one_more = np.minimum(before, after.max() + 1)
        assert one_more.max() > max_frac * one_more.sum()
    assert (after[cut] == after.max()).all()


def test_buckets() -> None:
    assert length_buckets(np.array([0, 1, 2, 3, 4, 7, 8, 1023, 1024])).tolist() == [1, 1, 2, 2, 3, 3, 4, 10, 11]
    assert difficulty_buckets(np.array([0.0, 0.2499, 0.25, 1.1])).tolist() == [0, 0, 1, 4]
    assert rank(0, "a") == rank(0, "a") != rank(1, "a")

"""Figures of diversity on prompts whose answer is known."""

import numpy as np
import pytest

from pipeline.prepare.synthesis import diversity
from pipeline.prepare.synthesis.diversity import (
    clusters,
    compare,
    coverage_frac,
    distinct_ngrams_frac,
    num_clusters_even,
    vectors,
)

TOPICS = {
    "sea": "sea wave salt harbour boat fish tide sail coast shell",
    "code": "python function loop string list class variable test bug compile",
    "food": "bread soup onion oven butter flour salad pepper lunch recipe",
    "law": "court judge contract clause lawyer tenant rent notice claim witness",
}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def about(topic: str, num: int, seed: int = 0) -> list[str]:
    chooser = np.random.default_rng([seed, len(topic)])
    return [" ".join(chooser.choice(TOPICS[topic].split(), 6, replace=False)) for _ in range(num)]


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        ([["a", "b", "c"]], 1, 1.0),
        ([["a", "b", "a", "b"]], 1, 0.5),
        ([["a", "b", "a", "b"]], 2, 2 / 3),
        ([["a", "b"], ["a", "b"]], 2, 0.5),  # none reaches over the border
        ([["a"], ["b"]], 2, 0.0),
        ([], 1, 0.0),
    ],
)
def test_distinct_ngrams(texts: list[list[str]], n: int, share: float) -> None:
    assert distinct_ngrams_frac(texts, n, 100, rng()) == pytest.approx(share)


def test_distinct_ngrams_are_of_so_many_words_whatever_the_size() -> None:
    """The share falls with size: of an equal number of words, a larger sample of the same kind is as various."""
    few, many = ([text.split() for text in about("sea", num)] for num in (50, 2000))
    whole = distinct_ngrams_frac(many, 2, sum(map(len, many)), rng())
    assert whole < 0.02
    assert distinct_ngrams_frac(many, 2, 300, rng()) == pytest.approx(distinct_ngrams_frac(few, 2, 300, rng()), abs=0.1)


def test_clusters_are_the_topics() -> None:
    texts = [text for topic in TOPICS for text in about(topic, 30)]
    cluster_N = clusters(vectors([text.split() for text in texts]), 4, rng()).reshape(4, 30)
    majorities = [np.bincount(row).argmax() for row in cluster_N]
    assert len(set(majorities)) == 4
    assert (cluster_N == np.array(majorities)[:, None]).mean() > 0.95


def test_clusters_of_nothing_but_copies_and_of_a_single_text() -> None:
    assert len(clusters(vectors([["a", "b"]] * 10), 3, rng())) == 10
    assert clusters(vectors([["a"]]), 1, rng()).tolist() == [0]
    assert clusters(vectors([[], ["a"]]), 2, rng()).shape == (2,)


def test_coverage_and_evenness() -> None:
    even, skewed = np.arange(40) % 4, np.array([0] * 37 + [1, 2, 3])
    assert coverage_frac(even, 5) == coverage_frac(skewed, 5) == 0.8
    assert num_clusters_even(even) == pytest.approx(4)
    assert 1 < num_clusters_even(skewed) < 1.6
    assert num_clusters_even(even[:0]) == 0


def test_prompts_on_new_ground_widen_the_coverage_and_copies_do_not() -> None:
    sources = about("sea", 40) + about("code", 40)
    wider = compare(sources, about("food", 40) + about("law", 40))
    assert wider["sources"]["cluster_coverage_frac"] + 0.2 < wider["all"]["cluster_coverage_frac"]
    assert wider["all"]["num_clusters_even"] > 1.5 * wider["sources"]["num_clusters_even"]
    assert wider["all"]["distinct_1_frac"] > wider["sources"]["distinct_1_frac"]
    assert (wider["samples"], wider["clusters"]) == (80, 40)
    same = compare(sources, [sources[0]] * 80)
    assert same["written"]["cluster_coverage_frac"] <= 0.1
    assert same["all"]["num_clusters_even"] < same["sources"]["num_clusters_even"]
    assert same["all"]["distinct_2_frac"] < same["sources"]["distinct_2_frac"]
    assert same["written"]["prompts"] == 80
    assert same["all"]["prompts"] == 160


def test_a_larger_set_of_the_same_kind_is_no_more_various() -> None:
    measured = compare(about("sea", 40), about("sea", 400, seed=1))
    few, many = measured["sources"], measured["written"]
    assert measured["samples"] == 40
    assert many["cluster_coverage_frac"] == pytest.approx(few["cluster_coverage_frac"], abs=0.15)
    assert many["distinct_2_frac"] == pytest.approx(few["distinct_2_frac"], abs=0.15)


def test_the_same_prompts_give_the_same_figures() -> None:
    sources, written = about("sea", 30), about("law", 30)
    assert compare(sources, written) == compare(sources, written)


def test_no_more_prompts_are_measured_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "MAX_PROMPTS", 20)
    measured = compare(about("sea", 200), about("law", 300))
    assert measured["all"]["prompts"] == 500
    assert measured["clusters"] == 10  # of 40 prompts

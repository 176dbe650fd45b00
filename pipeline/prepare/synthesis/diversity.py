"""How various a set of prompts is: distinct n-grams, and how much of the ground it covers that all sets share.

Offline and light: no model, nothing but words. Sets are compared at an equal number of words and of prompts, since the
share of distinct n-grams falls as any text grows (Heaps' law), and a larger set reaches more clusters. What is worded
otherwise counts as various here, good or bad.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.text.words import words

FloatArray = npt.NDArray[np.float32]
NGRAMS = (1, 2, 3)
MAX_PROMPTS = 20_000  # of each set, drawn at random: bounds time and memory (160 MB of counts)
ROUNDS = 5  # draws that distinct shares are averaged over, and beginnings of the clusters
BUCKETS = 1024
DIMENSIONS = 64
CLUSTERS = 50
MIN_PROMPTS_PER_CLUSTER = 4
STEPS = 25


def compare(before: Sequence[str], written: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Figures of the sources' prompts, of those written, and of both, each with clusters made of all of them.

    `{"sources", "written", "all"}`, each `{"prompts", "distinct_1_frac", "distinct_2_frac", "distinct_3_frac",
    "cluster_coverage_frac", "num_clusters_even"}`; and what that was measured on, `{"words", "samples", "clusters"}`:
    shares of n-grams are of `words` words, those of clusters of `samples` prompts, means over a few draws.
    """
    rng = np.random.default_rng(seed)
    sets = {"sources": before, "written": written, "all": [*before, *written]}
    tokens = {name: [words(text) for text in _sample(texts, rng)] for name, texts in sets.items()}
    num_words = min(sum(map(len, listed)) for listed in tokens.values() if listed)
    joint = [*tokens["sources"], *tokens["written"]]
    num_clusters = max(1, min(CLUSTERS, len(joint) // MIN_PROMPTS_PER_CLUSTER))
    cluster_N = clusters(vectors(joint), num_clusters, rng)
    place = len(tokens["sources"])
    members = {"sources": cluster_N[:place], "written": cluster_N[place:], "all": cluster_N}
    num_samples = min(len(drawn) for drawn in members.values() if len(drawn))
    draws = {
        name: [rng.permutation(of)[:num_samples] for _ in range(ROUNDS)] if len(of) else []
        for name, of in members.items()
    }
    figures = {
        name: {
            "prompts": len(sets[name]),
            **{f"distinct_{n}_frac": distinct_ngrams_frac(tokens[name], n, num_words, rng) for n in NGRAMS},
            "cluster_coverage_frac": _mean([coverage_frac(drawn, num_clusters) for drawn in draws[name]]),
            "num_clusters_even": _mean([num_clusters_even(drawn) for drawn in draws[name]]),
        }
        for name in tokens
    }
    return {**figures, "words": num_words, "samples": num_samples, "clusters": num_clusters}


def distinct_ngrams_frac(texts: Sequence[list[str]], n: int, num_words: int, rng: np.random.Generator) -> float:
    """Distinct n-grams over all n-grams (Li et al. 2016, arXiv 1510.03055), of texts that hold `num_words` words.

    The texts are taken in a random order up to that many words, and the share is averaged over a few such draws. No
    n-gram reaches over the border of two texts. 0 where there is none.
    """
    shares = []
    for _ in range(ROUNDS):
        ngrams: list[tuple[str, ...]] = []
        left = num_words
        for place in rng.permutation(len(texts)):
            text = texts[place][:left]
            left -= len(text)
            ngrams += zip(*(text[i:] for i in range(n)), strict=False)
            if not left:
                break
        shares.append(len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
    return _mean(shares)


def vectors(texts: Sequence[list[str]]) -> FloatArray:
    """(N, D) unit vectors: TF-IDF of words hashed into buckets, sublinear in counts, and its main directions (LSA)."""
    counts_NB = np.zeros((len(texts), BUCKETS), np.float32)
    for row, text in enumerate(texts):
        for word in text:
            counts_NB[row, zlib.crc32(word.encode()) % BUCKETS] += 1
    counts_NB = counts_NB[:, counts_NB.any(axis=0)]
    idf_B = np.log((1 + len(texts)) / (1 + (counts_NB > 0).sum(axis=0))) + 1
    weights_NB = _unit(np.log1p(counts_NB) * idf_B)
    _, directions_BB = np.linalg.eigh(weights_NB.T @ weights_NB)  # ascending
    return _unit(weights_NB @ directions_BB[:, -DIMENSIONS:])


def clusters(vectors_ND: FloatArray, num_clusters: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """(N,) the cluster of each: k-means by cosine (spherical k-means), the best of a few beginnings."""
    fits = [_k_means(vectors_ND, _far_apart(vectors_ND, num_clusters, rng)) for _ in range(ROUNDS)]
    return max(fits, key=lambda similarities_NC: similarities_NC.max(axis=1).sum()).argmax(axis=1)


def _k_means(vectors_ND: FloatArray, centres_CD: FloatArray) -> FloatArray:
    """(N, C) cosines with the centres, once these stand still."""
    for _ in range(STEPS):
        cluster_N = (vectors_ND @ centres_CD.T).argmax(axis=1)
        sums_CD = np.zeros_like(centres_CD)
        np.add.at(sums_CD, cluster_N, vectors_ND)
        is_used_C = np.bincount(cluster_N, minlength=len(centres_CD)) > 0
        moved_CD = np.where(is_used_C[:, None], _unit(sums_CD), centres_CD)
        if np.allclose(moved_CD, centres_CD, atol=1e-5):
            break
        centres_CD = moved_CD
    return vectors_ND @ centres_CD.T


def _far_apart(vectors_ND: FloatArray, num_clusters: int, rng: np.random.Generator) -> FloatArray:
    """(C, D) vectors to begin with, each drawn the likelier the farther it is from those before (k-means++)."""
    chosen = [int(rng.integers(len(vectors_ND)))]
    distance_N = np.full(len(vectors_ND), np.inf)
    for _ in range(num_clusters - 1):
        distance_N = np.minimum(distance_N, (1 - vectors_ND @ vectors_ND[chosen[-1]]).clip(1e-6))
        chosen.append(int(rng.choice(len(vectors_ND), p=distance_N / distance_N.sum())))
    return vectors_ND[chosen]


def coverage_frac(cluster_N: npt.NDArray[np.intp], num_clusters: int) -> float:
    """Share of the clusters that hold at least one of these prompts."""
    return len(np.unique(cluster_N)) / num_clusters


def num_clusters_even(cluster_N: npt.NDArray[np.intp]) -> float:
    """exp of the entropy of the prompts' clusters: how many clusters of equal size would be as various; 0 of none."""
    if not len(cluster_N):
        return 0.0
    shares_C = np.bincount(cluster_N)[np.unique(cluster_N)] / len(cluster_N)
    return float(np.exp(-(shares_C * np.log(shares_C)).sum()))


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _unit(rows_ND: Any) -> FloatArray:
    return (rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _sample(items: Sequence[str], rng: np.random.Generator) -> list[str]:
    if len(items) <= MAX_PROMPTS:
        return list(items)
    return [items[int(place)] for place in sorted(rng.choice(len(items), MAX_PROMPTS, replace=False))]

"""ROUGE-L and chrF against slow references written from their papers, and on values known by hand."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.tasks.overlap import chrf, rouge_l


def slow_rouge_l(answer: list[str], reference: list[str]) -> float:
    """F1 of the longest subsequence in both, by trying every one of the answer's."""
    longest = 0
    for length in range(len(answer), 0, -1):
        for chosen in combinations(answer, length):
            rest = iter(reference)
            if all(word in rest for word in chosen):  # consumes `rest`: in order
                longest = max(longest, length)
    if not longest:
        return 0.0
    precision, recall = longest / len(answer), longest / len(reference)
    return 2 * precision * recall / (precision + recall)


def slow_chrf(answer: str, reference: str) -> float:
    """Popović 2015, with each n-gram of one crossed off against one of the other."""
    answer, reference = answer.replace(" ", ""), reference.replace(" ", "")
    precisions, recalls = [], []
    for n in range(1, 7):
        said = [answer[i : i + n] for i in range(len(answer)) if len(answer[i : i + n]) == n]
        left = [reference[i : i + n] for i in range(len(reference)) if len(reference[i : i + n]) == n]
        if not said or not left:
            continue
        num, matched = len(left), 0
        for ngram in said:
            if ngram in left:
                left.remove(ngram)
                matched += 1
        precisions.append(matched / len(said))
        recalls.append(matched / num)
    if not sum(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * precision * recall / (4 * precision + recall)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8)
TEXTS = st.text("ab c", max_size=14)


@given(WORDS, WORDS)
def test_rouge_l_is_that_of_every_subsequence_tried(answer: list[str], reference: list[str]) -> None:
    assert rouge_l(" ".join(answer), " ".join(reference)) == pytest.approx(slow_rouge_l(answer, reference))


@given(TEXTS, TEXTS)
def test_chrf_is_that_of_ngrams_crossed_off_one_by_one(answer: str, reference: str) -> None:
    assert chrf(answer, reference) == pytest.approx(slow_chrf(answer, reference))


def test_values_known_by_hand() -> None:
    assert rouge_l("the cat sat", "The cat sat!") == 1
    assert rouge_l("the gunman police killed", "police killed the gunman") == pytest.approx(0.5)
    assert rouge_l("", "x") == rouge_l("x", "y") == 0
    assert chrf("a cat", "a cat") == 1
    assert chrf("ab", "abcd") == pytest.approx(5 * 1 * (5 / 12) / (4 * 1 + 5 / 12))  # recall (2/4 + 1/3) / 2
    assert chrf("", "x") == chrf("x", "y") == 0


def test_recall_counts_twice() -> None:
    assert chrf("abcdef", "abc") > chrf("abc", "abcdef")

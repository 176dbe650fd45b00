"""How much of a reference an answer has, by words and by characters; 0 to 1."""

from collections import Counter

from pipeline.text.words import words

CHRF_ORDER, CHRF_BETA = 6, 2.0


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, punctuation and case apart (Lin 2004, ROUGE-L)."""
    said, wanted = words(answer), words(reference)
    common = _common_subsequence(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def chrf(answer: str, reference: str) -> float:
    """F of character n-grams, n from 1 to 6, recall counting twice (β = 2), without white space (Popović 2015).

    Precision and recall are means over the lengths that both texts have n-grams of.
    """
    said, wanted = ("".join(text.split()) for text in (answer, reference))
    precision = recall = 0.0
    lengths = range(1, min(CHRF_ORDER, len(said), len(wanted)) + 1)
    for n in lengths:
        given, asked = _ngrams(said, n), _ngrams(wanted, n)
        matched = (given & asked).total()
        precision += matched / given.total() / len(lengths)
        recall += matched / asked.total() / len(lengths)
    if not precision:
        return 0.0
    return (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))


def _common_subsequence(one: list[str], other: list[str]) -> int:
    """Length of the longest; row by row, so that memory is that of `other`."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = 0  # of the row above, one to the left
        for place, another in enumerate(other, 1):
            above = lengths[place]
            lengths[place] = before + 1 if word == another else max(above, lengths[place - 1])
            before = above
    return lengths[-1]

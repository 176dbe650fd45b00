"""Two measures of a text that goes round in circles; filter drops by them, evaluate counts by them."""

import re
from itertools import groupby

SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
NGRAM_WORDS = 10
MIN_NGRAM_TEXT_WORDS = 30


def longest_sentence_run(text: str) -> int:
    """How often one sentence or line stands in a row, at most."""
    sentences = [s.strip().lower() for s in SENTENCE.split(text) if any(c.isalnum() for c in s)]
    return max((len(list(run)) for _, run in groupby(sentences)), default=0)


def duplicate_ngram_frac(text: str) -> float:
    """Share of the 10-grams of words that stand earlier in the text (after Gopher, table A1); 0 below 30 words."""
    words = text.lower().split()
    if len(words) < MIN_NGRAM_TEXT_WORDS:
        return 0.0
    ngrams = [tuple(words[i : i + NGRAM_WORDS]) for i in range(len(words) - NGRAM_WORDS + 1)]
    return 1 - len(set(ngrams)) / len(ngrams)

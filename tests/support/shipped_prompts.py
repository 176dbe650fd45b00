"""The shipped prompts, and which of them are nearly alike."""

import json
import re
from pathlib import Path
from typing import Any

import pipeline

PROMPTS = Path(pipeline.__file__).parent.parent / "prompts"


NGRAM_WORDS = 5


NEAR = 0.2  # Jaccard similarity of two prompts' 5-grams of words


def load(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (PROMPTS / name).read_text(encoding="utf-8").splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def ngrams(text: str) -> set[tuple[str, ...]]:
    """5-grams of words; the whole text where it is shorter."""
    sequence = words(text)
    return {tuple(sequence[i : i + NGRAM_WORDS]) for i in range(max(1, len(sequence) - NGRAM_WORDS + 1))}


def similarity(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


def near_pairs(some: list[str], others: list[str]) -> list[tuple[str, str]]:
    grams = {text: ngrams(text) for text in [*some, *others]}
    return [(a, b) for a in some for b in others if a is not b and similarity(grams[a], grams[b]) >= NEAR]

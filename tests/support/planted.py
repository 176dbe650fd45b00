"""Texts that vary truly, and light edits of them: what the tests of duplicates and of contamination plant."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pipeline

PROMPTS = Path(pipeline.__file__).parent.parent / "prompts"
SEEDS = [
    json.loads(line)["messages"][-1]["content"]
    for line in (PROMPTS / "seeds.jsonl").read_text(encoding="utf-8").splitlines()
]
ITEMS = [
    turn
    for line in (PROMPTS / "chat_eval.jsonl").read_text(encoding="utf-8").splitlines()
    for turn in json.loads(line)["turns"]
]
VOCABULARY = sorted({word for seed in SEEDS for word in re.findall(r"[a-z]{2,}", seed.lower())})


def prose(draw: random.Random, num_words: int) -> str:
    """Sentences of words that the shipped prompts use."""
    drawn = draw.choices(VOCABULARY, k=num_words)
    sentences = []
    while drawn:
        length = draw.randint(6, 16)
        sentences.append(" ".join(drawn[:length]).capitalize() + ".")
        drawn = drawn[length:]
    return " ".join(sentences)


def change_a_word(draw: random.Random, text: str) -> str:
    pieces = text.split(" ")
    pieces[draw.randrange(len(pieces))] = "otherwise"
    return " ".join(pieces)


def add_a_sentence(draw: random.Random, text: str) -> str:
    sentences = text.split(". ")
    sentences.insert(draw.randrange(len(sentences)), f"I hope that {draw.choice(VOCABULARY)} helps")
    return ". ".join(sentences)


def change_punctuation(draw: random.Random, text: str) -> str:
    return "".join(draw.choice(",;!…") if mark == "." and draw.random() < 0.7 else mark for mark in text)


def change_case(draw: random.Random, text: str) -> str:
    return " ".join(draw.choice([str.upper, str.title, str.lower])(piece) for piece in text.split(" "))


Edit = Callable[[random.Random, str], str]
EDITS: tuple[Edit, ...] = (
    change_a_word,
    add_a_sentence,
    change_punctuation,
    change_case,
)

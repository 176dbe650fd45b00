"""What of a text counts when texts are compared: its words, and of a conversation what was said in it."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

# Scripts without spaces between words, of which each character counts as one: Thai, Lao, Burmese, Khmer, kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u0670\u0900-\u0dff"  # of letters, which \w has not: accents, matras
# What tells 3 + 4 from 3 * 4, C from C++ and a laugh from tears is not mere punctuation.
_SIGNS = r"[-+*/^%](?=\s?(?:\d|[^\W\d_]{1,2}\b))|[=<>≤≥≠±×÷√∑∫∂∞$€£¥]|(?<=\w)[+#]+|[\u2600-\u27bf\U0001f000-\U0001faff]"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W{_UNSPACED}]+|[{_MARKS}])+|{_SIGNS}")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_APOSTROPHE = re.compile(r"(?<=\w)['’ʼ](?=\w)")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplication by it loses no bit
_FENCED = re.compile(r"```.*?(```|\Z)", re.DOTALL)


def words(text: str) -> list[str]:
    """The words of a text, in Unicode's compatible form (NFKC) and folded case, without punctuation.

    Of scripts that set no spaces each character is a word; signs of arithmetic and emoji are words too. Characters that
    nobody sees part no word, underscores do. Of a text without words, what stands between its spaces.
    """
    seen = text if text.isascii() else _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    folded = _APOSTROPHE.sub("", seen.casefold().replace("_", " "))
    return _WORD.findall(folded) or folded.split()


def ngram_hashes(sequence: list[str], lengths: Iterable[int]) -> dict[int, Hashes]:
    """64-bit hashes of a sequence's n-grams, by n; they hold within this process, as Python's hashes of words do."""
    word_hashes = np.fromiter(map(hash, sequence), np.int64, len(sequence)).view(np.uint64)
    hashes, found = word_hashes, {}
    for length in range(1, min(max(lengths, default=0), len(sequence)) + 1):
        if length > 1:
            hashes = hashes[:-1] * _BASE + word_hashes[length - 1 :]
        if length in lengths:
            found[length] = hashes
    return found


def prompt_text(messages: list[dict[str, Any]]) -> str:
    """What a conversation's messages say, without those of the system: one of them may stand before every prompt."""
    return "\n".join(message["content"] for message in messages if message["role"] != "system" and message["content"])


def system_text(messages: list[dict[str, Any]]) -> str:
    """What the system's messages say."""
    return "\n".join(message["content"] for message in messages if message["role"] == "system" and message["content"])


def ask(messages: list[dict[str, Any]]) -> str:
    """What a conversation's last message asks: without code in fences and without its longest line, where it has more.

    So two questions about one passage are told apart, however long it is.
    """
    text = messages[-1]["content"] or ""
    lines = [line for line in _FENCED.sub("\n", text).splitlines() if _WORD.search(line)]
    if len(lines) > 1:
        lines.remove(max(lines, key=len))
    return "\n".join(lines) or text

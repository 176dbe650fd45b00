"""What many texts of a corpus share: an instruction, a template, examples, a long document. It makes no texts alike.

A corpus of one task sets the same instruction before every message. 5-grams of words that many texts share count for
nothing when texts are compared for near duplicates, as in contamination.py; what is left of a text is its own.

Shared words alone don't make a template: thirty light edits of one prompt share most of theirs. Texts made with a
template go apart where its slot is. So shared n-grams that follow one another count as boilerplate where the texts that
have them go on, or began, in different ways; in edits of one text nearly all go on alike.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from pipeline.text.words import Hashes, ngram_hashes, prompt_text, system_text, words

NGRAM_WORDS = 5
SAMPLE_TEXTS = 1000  # of each source
MIN_SHARED_TEXTS = 11  # n-grams of so many sampled texts are shared
MIN_SHARED_OF_FEW = 3  # likewise, where that is more than half of the texts
SLOT_FRAC = 0.5  # of an n-gram's places: from how many on the texts go apart there

T = TypeVar("T")


class Sample(Generic[T]):
    """Items of each source, drawn evenly: the same in whatever order they are added.

    Those whose keys have the lowest hashes stay, so an item added twice is held once.
    """

    def __init__(self, num: int = SAMPLE_TEXTS) -> None:
        self._num = num
        self._drawn: dict[str, dict[int, T]] = {}  # by source: items by the hash of their key
        self._heaps: dict[str, list[int]] = {}  # the same hashes, negated: the highest first

    def add(self, source: str, key: str, item: T) -> None:
        place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
        drawn, heap = self._drawn.setdefault(source, {}), self._heaps.setdefault(source, [])
        if place in drawn:
            return
        if len(heap) < self._num:
            heapq.heappush(heap, -place)
        elif place > -heap[0]:
            return
        else:
            del drawn[-heapq.heappushpop(heap, -place)]
        drawn[place] = item

    def by_source(self) -> Iterator[list[T]]:
        """The items of each source, ordered by the hashes of their keys."""
        for drawn in self._drawn.values():
            yield [drawn[place] for place in sorted(drawn)]


@dataclass(frozen=True)
class Text:
    """The words of a conversation: what the system said, all others, and the answer that is compared with it."""

    system: list[str]
    prompt: list[str]
    answer: list[str]

    @classmethod
    def of(cls, messages: list[dict[str, Any]], answer: str = "") -> "Text":
        return cls(words(system_text(messages)), words(prompt_text(messages)), words(answer))


class Boilerplate:
    """The n-grams, and the whole prompts, that many texts of one source share. Memory: 8 bytes for each."""

    def __init__(self, sources: Iterable[Sequence[Text]] = ()) -> None:
        ngrams, prompts = [np.empty(0, np.uint64)], set[tuple[str, ...]]()
        for texts in sources:
            ngrams.append(_template_ngrams([[*text.system, *text.prompt, *text.answer] for text in texts]))
            asked = Counter(tuple(text.prompt) for text in texts)
            prompts |= {prompt for prompt, num in asked.items() if num >= _min_texts(len(texts))}
        self._ngrams, self._prompts = np.unique(np.concatenate(ngrams)), prompts

    def __len__(self) -> int:
        return len(self._ngrams)

    def compared(self, prompt: list[str], messages: list[dict[str, Any]]) -> list[str]:
        """The words that set a prompt apart from others: the system's too, where many prompts are this one."""
        return [*words(system_text(messages)), *prompt] if tuple(prompt) in self._prompts else prompt

    def own_ngrams(self, sequence: list[str]) -> list[str]:
        """A text's 5-grams of words that are no boilerplate; all of them where nothing else is left.

        A text of fewer words is one n-gram.
        """
        num = max(1, len(sequence) - NGRAM_WORDS + 1)
        ngrams = [" ".join(sequence[n : n + NGRAM_WORDS]) for n in range(num)]
        if not len(self._ngrams) or len(sequence) < NGRAM_WORDS:
            return ngrams
        hashes = ngram_hashes(sequence, [NGRAM_WORDS])[NGRAM_WORDS]
        near = np.minimum(np.searchsorted(self._ngrams, hashes), len(self._ngrams) - 1)
        own = np.flatnonzero(self._ngrams[near] != hashes).tolist()
        return [ngrams[n] for n in own] or ngrams


NO_BOILERPLATE = Boilerplate()


def _min_texts(num: int) -> int:
    """In how many of so many texts an n-gram must stand to be shared."""
    return max(MIN_SHARED_OF_FEW, min(num // 2 + 1, MIN_SHARED_TEXTS))


def _template_ngrams(texts: list[list[str]]) -> Hashes:
    """Hashes of the n-grams of all stretches that are shared, and at one end of which texts go apart.

    Axes: N n-grams of all texts, one after the other.
    """
    parts = [ngram_hashes(text, [NGRAM_WORDS]).get(NGRAM_WORDS, np.empty(0, np.uint64)) for text in texts]
    hashes_N = np.concatenate([np.empty(0, np.uint64), *parts])
    text_N = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    _, ngram_N, num_places = np.unique(hashes_N, return_inverse=True, return_counts=True)
    num_texts = np.bincount(np.unique(ngram_N * max(1, len(parts)) + text_N) // max(1, len(parts)))
    is_shared_N = num_texts[ngram_N] >= _min_texts(len(parts))
    is_next_N = np.append(False, text_N[1:] == text_N[:-1])[: len(text_N)]  # whether it goes on from the one before
    follows_shared_N = np.append(False, is_shared_N[:-1])[: len(text_N)] & is_next_N
    begins_N = is_next_N & is_shared_N & ~follows_shared_N  # after words of the text's own
    ends_N = np.append((follows_shared_N & ~is_shared_N)[1:], False)[: len(text_N)]  # before such words
    stretch_N = np.cumsum(is_shared_N & ~follows_shared_N)
    has_slot = np.zeros(int(stretch_N.max(initial=0)) + 1, bool)
    for at_N in (begins_N, ends_N):
        num_apart = np.bincount(ngram_N[at_N], minlength=len(num_places))
        is_slot_N = at_N & (num_apart >= SLOT_FRAC * num_places)[ngram_N]
        has_slot[stretch_N[is_slot_N]] = True
    return np.unique(hashes_N[is_shared_N & has_slot[stretch_N]])

"""What a rule sees of one response, and what it says about it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.config import Filter
from pipeline.text.repetition import has_duplicate_ngram

Verdict = tuple[float, bool]  # (score, keep)
Nats = npt.NDArray[np.float32]

FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n.*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]+`")
CODE_LINE = re.compile(
    r"def |class |import |#include|for \(|public |if \(|while \(|(?:const|let|var) \w+ ?=|function \w+\("
    r"|SELECT |</?[a-z]\w*(?: [a-z-]+=[^>]*)?>$"
)
MATHS_SIGN = re.compile(r"[\\$=+×÷*/^]")  # without one of which there is no maths
MATHS = re.compile(
    r"\\(?:frac|sqrt|sum|int|begin|cdot|times|\(|\[)|\$[^$\n]+\$|\d ?[=+×÷*/^] ?\(?-?\d|\b[^\W\d_] ?= ?-?\d"
)
LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+•–][ \t]+\S|\d{1,3}[.)][ \t]+\S|\|)", re.MULTILINE)
# Scripts that put no space between words: each character counts as a word of its own.
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff]")
MIN_LIST_ITEMS = 3
MIN_LOOP_WORD_CHARS = 20  # a word of so many may be a loop without spaces: see pipeline/text/loops.py


@dataclass(frozen=True)
class Run:
    """What the rules know of the run as a whole."""

    special_ids: frozenset[int] = frozenset()  # the tokenizer's control tokens
    stop_ids: frozenset[int] = frozenset()  # tokens that end a turn
    nll_limit_nats: float | None = None  # mean NLL beyond which an answer is among the run's worst


@dataclass(frozen=True)
class Response:
    """What the rules see of a response: the answer without its reasoning, and what was asked."""

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt: str = ""  # the last thing the user said
    system: str = ""
    # of the answer's tokens, nats; empty where unknown: then the rules of confidence say nothing
    token_logprobs: Nats = field(default_factory=lambda: np.empty(0, np.float32))
    logprobs: dict[str, Any] | None = None  # the response's packed log-probs, where a rule that is on needs them
    run: Run = field(default_factory=Run)

    @property
    def ended(self) -> bool:
        """Whether the teacher ended its turn; else the answer was cut off, and its end proves nothing."""
        return self.finish_reason == "stop"

    @property
    def num_body_tokens(self) -> int:
        """Tokens of the answer without its end-of-turn."""
        return len(self.token_ids) - self.ended

    @cached_property
    def words(self) -> list[str]:
        """Words in lower case, parted by white space and a table's bars; characters where a script has no spaces."""
        text = self.text.lower()
        if "|" in text:  # rows of tables
            text = text.replace("|", " ")
        if text.isascii() or not UNSPACED.search(text):
            return text.split()
        return UNSPACED.sub(r" \g<0> ", text).split()

    @cached_property
    def repeats(self) -> bool:
        """Whether any five words stand there twice; most answers repeat nothing, and need no closer look."""
        return has_duplicate_ngram(self.words, 5)

    @property
    def may_loop(self) -> bool:
        """Whether a loop may be in it: words that come again, or one so long that it may hold one."""
        return self.repeats or max(map(len, self.words), default=0) >= MIN_LOOP_WORD_CHARS

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, without the white space around them."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def prose(self) -> str:
        """The text without fenced and inline code."""
        if "`" not in self.text and "~~~" not in self.text:
            return self.text
        return INLINE_CODE.sub(" ", FENCED.sub("\n", self.text))

    @cached_property
    def form(self) -> Literal["code", "maths", "list", "prose"]:
        """What the answer mainly is; a list or table where half of the lines, three at least, are items or rows."""
        if "```" in self.text or any(map(CODE_LINE.match, self.lines)):
            return "code"
        num_items = len(LIST_ITEM.findall(self.text))
        if num_items >= MIN_LIST_ITEMS and 2 * num_items >= len(self.lines):
            return "list"
        is_maths = MATHS_SIGN.search(self.text) and MATHS.search(self.text)
        return "maths" if is_maths else "prose"

    @property
    def asked(self) -> str:
        """All that told the teacher how to answer."""
        return f"{self.system}\n{self.prompt}" if self.system else self.prompt


Rule = Callable[[Response, Filter], Verdict | None]  # None: the rule is off, or has nothing to say of this answer

"""Where an answer's reasoning ends and the answer proper begins, token by token; and what of it a student learns."""

from bisect import bisect_left
from typing import Any, NamedTuple

Tags = tuple[str, str]
Row = dict[str, Any]


class Split(NamedTuple):
    """An answer taken apart. Its first `num_tokens` tokens are reasoning, the tags included; 0 where there is none."""

    num_tokens: int
    start: int  # the tokens start..end are what stands between the tags
    end: int
    reasoning: str | None
    text: str


def split(tokenizer: Any, tags: Tags | None, prompt_token_ids: list[int], token_ids: list[int]) -> Split:
    """The reasoning is what begins the answer and goes to the end tag; its start tag may stand at the prompt's end.

    Reasoning that is never closed is the whole answer. An answer in which no tag occurs costs no more than its text.
    """
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    if tags is None:
        return Split(0, 0, 0, None, text.strip())
    start_tag, end_tag = tags
    is_open = _opens(tokenizer, start_tag, prompt_token_ids)
    if not is_open and start_tag not in text and _own_id(tokenizer, start_tag) not in token_ids:
        return Split(0, 0, 0, None, text.strip())
    whole = tokenizer.decode(token_ids)
    begins = whole.lstrip().startswith(start_tag)
    if not is_open and not begins:
        return Split(0, 0, 0, None, text.strip())
    num_tokens = _tokens_until(tokenizer, end_tag, token_ids)
    start = _tokens_until(tokenizer, start_tag, token_ids[:num_tokens]) if begins else 0
    is_closed = end_tag in whole
    end = max(start, _last_tag(tokenizer, end_tag, token_ids[:num_tokens])) if is_closed else num_tokens
    reasoning = tokenizer.decode(token_ids[:num_tokens], skip_special_tokens=True)
    reasoning = reasoning.lstrip().removeprefix(start_tag).partition(end_tag)[0].strip()
    rest = tokenizer.decode(token_ids[num_tokens:], skip_special_tokens=True)
    merged = tokenizer.decode(token_ids[:num_tokens]).partition(end_tag)[2]  # of the token that completes the tag
    return Split(num_tokens, start, end, reasoning, (merged + rest).strip())


def learnt(row: Row, how: str) -> tuple[list[int], list[int]]:
    """`(context, answer)`: the tokens a student is given, and those it learns, the last ones of the response's.

    `how` is train.reasoning. With `drop` the answer's rows of log-probs are still those of the teacher that had its
    reasoning in view: the student learns to answer as if it had reasoned.
    """
    num_reasoning = 0 if how == "keep" else row["reasoning_tokens"]
    reasoning, answer = row["token_ids"][:num_reasoning], row["token_ids"][num_reasoning:]
    if how == "drop" and num_reasoning:
        reasoning = reasoning[: row["reasoning_start"]] + reasoning[row["reasoning_end"] :]
    return row["prompt_token_ids"] + reasoning, answer


def _opens(tokenizer: Any, start_tag: str, prompt_token_ids: list[int]) -> bool:
    """Whether the template has opened the reasoning already (DeepSeek-R1, Qwen3-Thinking)."""
    tail = prompt_token_ids[-(len(start_tag) + 8) :]  # a token is a character at the least
    return tokenizer.decode(tail).rstrip().endswith(start_tag)


def _own_id(tokenizer: Any, tag: str) -> int | None:
    """The id of a tag that is a token of its own, which a text without special tokens may not show."""
    token_id = tokenizer.convert_tokens_to_ids(tag)
    return None if token_id == tokenizer.unk_token_id else token_id


def _tokens_until(tokenizer: Any, tag: str, token_ids: list[int]) -> int:
    """How many tokens it takes to write the tag for the first time; all, where it does not occur."""
    own_id = _own_id(tokenizer, tag)
    if own_id is not None and own_id in token_ids:
        return token_ids.index(own_id) + 1
    places = range(len(token_ids))
    first = bisect_left(places, True, key=lambda n: tag in tokenizer.decode(token_ids[: n + 1]))
    return min(first + 1, len(token_ids))


def _last_tag(tokenizer: Any, tag: str, token_ids: list[int]) -> int:
    """Where the tag that these tokens end with begins."""
    places = range(len(token_ids))
    return next(n for n in reversed(places) if tag in tokenizer.decode(token_ids[n:]))

"""Rules of form: whether the answer is a whole answer, of a fitting length, in the format that was asked for."""

import json
import math
import re

from pipeline import codec
from pipeline.config import Filter
from pipeline.errors import UserError
from pipeline.filter.rules.response import FENCED, Response, Verdict

FENCE = re.compile(r"^[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)
REASONING_TAG = re.compile(r"<(/?)(think|thinking|reasoning|reflection|scratchpad)>", re.IGNORECASE)
# Chat templates as plain text: ChatML, Llama 2-4, Gemma, Mistral, Phi, Harmony, Alpaca, DeepSeek.
MARKUP = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|eom_id|begin_of_text|end_of_text|start_header_id|end_header_id"
    r"|system|user|assistant|end|start|channel|message|eot|header_start|header_end|tool_call|return)\|>"
    r"|</?s>(?=\s*(?:\[INST|$))|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<[|｜](?:begin|end)▁of▁sentence[|｜]>|<[|｜](?:User|Assistant)[|｜]>"
    r"|^#{2,3} (?:Instruction|Response|Input):[ \t]*$",
    re.MULTILINE,
)
# The model goes on with the user's next turn.
USER_TURN, ASSISTANT_TURN = (
    re.compile(rf"^(?:\*\*)?(?:{who})(?:\*\*)?:", re.MULTILINE) for who in ("User|Human", "Assistant|AI")
)
ASKS_TURNS = re.compile(
    r"\b(?:dialogues?|dialogs?|conversations?|transcripts?|chats?|chat ?bots?|scripts?|role-?play|turns?|templates?"
    r"|tokens?|prompts?|ChatML|Alpaca|language models?|LLMs?)\b",
    re.IGNORECASE,
)
BROKEN = re.compile(
    "[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ue000-\uf8ff]"
    "|[\xc2\xc3][\x80-\xbf\u0152-\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]|â€"  # Latin-1, or Windows's
)
JSON_IN = r"(?:as|in|into|to|with|only|just|valid|raw|return|output|write|give me|produce|create|make|generate|an?)"
ASKS_JSON = re.compile(
    rf"\b{JSON_IN}\s+(?:\w+\s+){{0,2}}JSON\b(?!\s+(?:parser|schema|library|module|file|decoder|encoder))",
    re.IGNORECASE,
)
ASKS_ABOUT_JSON = re.compile(
    r"\b(?:how|what|why|explain|differ(?:ence)?|function|script|program|code|class|python|javascript|parse|convert"
    r"|read|fix|wrong|error|compare|versus|vs|advantages?|pros|when|should|from JSON)\b",
    re.IGNORECASE,
)
MIN_RATIO_PROMPT_WORDS = 20
MIN_ECHO_PROMPT_WORDS = 8
WORD = re.compile(r"\w+")


def empty(answer: Response, settings: Filter) -> Verdict | None:
    """Characters that are not white space; an answer without any is dropped (open-instruct)."""
    length = len(answer.text.strip())
    return length, length > 0


def truncated(answer: Response, settings: Filter) -> Verdict | None:
    """1 where the answer hit max_tokens: its end-of-turn was never written, and training on it teaches never to stop.

    Ours.
    """
    if not settings.drop_truncated:
        return None
    return float(not answer.ended), answer.ended


def unfinished(answer: Response, settings: Filter) -> Verdict | None:
    """Probability of an end-of-turn in the last stored row of an answer that was cut off, against `min_end_prob`. Ours.

    A high one: the text was at a place where it could have ended. 0 where no stop token is in the row's support (then
    it is at most the tail). Of answers that ended, and rows that were not stored, nothing is said.
    """
    if settings.min_end_prob is None or answer.ended or answer.logprobs is None:
        return None
    try:
        ids_NK, logprobs_NK, _ = codec.decode(answer.logprobs)
    except ValueError as error:
        raise UserError(f"filter: {error}; generate again: --fresh") from None
    last = zip(ids_NK[-1].tolist(), logprobs_NK[-1].tolist(), strict=True)
    # an id that fills up a short row stands there again, at −inf
    prob = sum(math.exp(logprob) for token, logprob in last if token in answer.run.stop_ids)
    return prob, prob >= settings.min_end_prob


def control_tokens(answer: Response, settings: Filter) -> Verdict | None:
    """Special tokens before the last token: template markup leaked into the answer (NeMo Curator, open-instruct)."""
    if not settings.drop_control_tokens:
        return None
    body = answer.token_ids[:-1] if answer.ended else answer.token_ids
    if answer.run.special_ids.isdisjoint(body):
        return 0, True
    return sum(token in answer.run.special_ids for token in body), False


def template_markup(answer: Response, settings: Filter) -> Verdict | None:
    """Marks of a chat template written out as text, outside code, and turns the teacher wrote for the user.

    Where the prompt speaks of dialogue, templates or tokens, turns and marks are an answer to it (ours, after
    open-instruct's checks of special tokens).
    """
    if not settings.drop_template_markup:
        return None
    num = len(MARKUP.findall(answer.prose)) if "<" in answer.prose or "[" in answer.prose or "##" in answer.prose else 0
    user = USER_TURN.search(answer.prose)
    num += user is not None and ASSISTANT_TURN.search(answer.prose, user.end()) is not None
    return num, num == 0 or ASKS_TURNS.search(answer.asked) is not None


def unclosed_fence(answer: Response, settings: Filter) -> Verdict | None:
    """1 where the answer ends inside a fenced code block (CommonMark's fences, at any indentation; after NeMo Curator).

    Of an answer that was cut off nothing is said: it is `truncated`.
    """
    if not settings.drop_unclosed or not answer.ended:
        return None
    is_open = _ends_in_fence(answer.text)
    return float(is_open), not is_open


def unclosed_tag(answer: Response, settings: Filter) -> Verdict | None:
    """Reasoning tags (`<think>` and the like) without their other half, outside code; not of answers cut off. Ours."""
    if not settings.drop_unclosed or not answer.ended:
        return None
    if "<" not in answer.prose:
        return 0.0, True
    balance: dict[str, int] = {}
    for slash, tag in REASONING_TAG.findall(answer.prose):
        balance[tag.lower()] = balance.get(tag.lower(), 0) + (-1 if slash else 1)
    num = sum(map(abs, balance.values()))
    return num, num == 0


def broken_characters(answer: Response, settings: Filter) -> Verdict | None:
    """Characters that no text has: U+FFFD (bytes that are not UTF-8), controls, private use; and UTF-8 read as Latin-1.

    At the end of an answer that was cut off a character may be half there (after ftfy's mojibake, in short).
    """
    if not settings.drop_broken_characters:
        return None
    text = answer.text if answer.ended else answer.text.rstrip("\ufffd")
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return 0, True
    num = len(BROKEN.findall(text))
    return num, num == 0


def too_short(answer: Response, settings: Filter) -> Verdict | None:
    """Answer tokens without the end-of-turn, against `min_tokens`. Ours."""
    length = answer.num_body_tokens
    return None if settings.min_tokens is None else (length, length >= settings.min_tokens)


def too_long(answer: Response, settings: Filter) -> Verdict | None:
    """Answer tokens without the end-of-turn, against `max_tokens`. Ours."""
    length = answer.num_body_tokens
    return None if settings.max_tokens is None else (length, length <= settings.max_tokens)


def length_ratio(answer: Response, settings: Filter) -> Verdict | None:
    """Words of the answer for each of the prompt's, against `max_length_ratio`; prompts of 20 words on.

    For corpora of one task (translation, summaries), where an answer many times as long is none. Ours.
    """
    num = len(answer.prompt.split())
    if settings.max_length_ratio is None or num < MIN_RATIO_PROMPT_WORDS:
        return None
    ratio = len(answer.words) / num
    return ratio, ratio <= settings.max_length_ratio


def echo(answer: Response, settings: Filter) -> Verdict | None:
    """How much the answer is the prompt said again: common words in a row from the start, over the longer of the two.

    Prompts of 8 words on; a text that was only to be corrected does not begin with the instruction. Ours.
    """
    if settings.max_echo_frac is None:
        return None
    first, said = WORD.search(answer.prompt), WORD.search(answer.text)
    if first is None or said is None or first[0].lower() != said[0].lower():
        return 0.0, True
    start = WORD.findall(answer.prompt[:200].lower())[:MIN_ECHO_PROMPT_WORDS]
    if len(start) < MIN_ECHO_PROMPT_WORDS:
        return None
    if WORD.findall(answer.text[:200].lower())[:MIN_ECHO_PROMPT_WORDS] != start:
        return 0.0, True
    prompt, text = WORD.findall(answer.prompt.lower()), WORD.findall(answer.text.lower())
    common = next(
        (n for n, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), min(len(prompt), len(text))
    )
    share = common / max(len(prompt), len(text))
    return share, share <= settings.max_echo_frac


def broken_json(answer: Response, settings: Filter) -> Verdict | None:
    """1 where the prompt asks for JSON and nothing in the answer parses as an object or a list. Not of answers cut off.

    Looked at: fenced blocks, the whole answer, and what begins at its first bracket. Ours.
    """
    if not settings.drop_broken_json or not answer.ended or "json" not in answer.asked.lower():
        return None
    if not _asks_json(answer.asked):
        return None
    found = any(map(_is_json, _json_places(answer.text)))
    return float(not found), found


def _ends_in_fence(text: str) -> bool:
    if "```" not in text and "~~~" not in text:
        return False
    opened = ""
    for mark, rest in FENCE.findall(text):
        if not opened:
            opened = mark if "`" not in rest else ""  # "```x```" is inline code
        elif mark[0] == opened[0] and len(mark) >= len(opened) and not rest.strip():
            opened = ""
    return bool(opened)


def _asks_json(asked: str) -> bool:
    """Whether a sentence asks for JSON, and not about it."""
    return any(
        ASKS_JSON.search(sentence) and not ASKS_ABOUT_JSON.search(sentence)
        for sentence in re.split(r"(?<=[.!?:;])\s|\n", asked)
        if "json" in sentence.lower()
    )


def _json_places(text: str) -> list[str]:
    blocks = [match.group(0).strip().split("\n", 1)[-1].rsplit("\n", 1)[0] for match in FENCED.finditer(text)]
    inline = [part.strip("`") for part in re.findall(r"`[^`]+`", text)]
    bracket = min((n for n in (text.find("{"), text.find("[")) if n >= 0), default=None)
    return [*blocks, *inline, text.strip(), *([] if bracket is None else [text[bracket:]])]


def _is_json(text: str) -> bool:
    """Whether it begins with an object or a list (JSON lines: each line with one)."""
    text = text.strip()
    if not text.startswith(("{", "[")):
        return False
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):  # a thousand brackets, say
        return False
    return True

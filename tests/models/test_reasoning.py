"""Where reasoning ends, by tokenizers that have the tags as tokens and such as spell them; what a student learns."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from pipeline.models.tokenizer.reasoning import learnt, split

TAGS = ("<think>", "</think>")


@pytest.fixture(scope="module", params=["spelled", "tokens", "special tokens"])
def tokenizer(request: pytest.FixtureRequest, byte_tokenizer: Path) -> Any:
    """The tags in several tokens each, as tokens, or as tokens that are left out of decoded text."""
    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(byte_tokenizer)
    if request.param != "spelled":
        loaded.add_tokens(
            [AddedToken(tag, special=request.param == "special tokens", normalized=False) for tag in TAGS]
        )
    return loaded


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def parts(tokenizer: Any, prompt: str, answer: str) -> tuple[list[str], str | None, str]:
    """`(start tag, inside, end tag, rest)` as the tokens have it, then the reasoning's text and the answer's."""
    token_ids = ids(tokenizer, answer)
    found = split(tokenizer, TAGS, ids(tokenizer, prompt), token_ids)
    assert 0 <= found.start <= found.end <= found.num_tokens <= len(token_ids)
    places = [(0, found.start), (found.start, found.end), (found.end, found.num_tokens), (found.num_tokens, None)]
    return [tokenizer.decode(token_ids[slice(*place)]) for place in places], found.reasoning, found.text


PROMPT = "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt", "answer", "pieces", "reasoning", "text"),
    [
        (PROMPT, "Yes.<|im_end|>", ["", "", "", "Yes.<|im_end|>"], None, "Yes."),
        (PROMPT, "", ["", "", "", ""], None, ""),
        (
            PROMPT,
            "<think>\nhm 🙂\n</think>\n\nYes.<|im_end|>",
            ["<think>", "\nhm 🙂\n", "</think>", "\n\nYes.<|im_end|>"],
            "hm 🙂",
            "Yes.",
        ),
        (
            f"{PROMPT}<think>\n",
            "hm\n</think>\n\nYes.<|im_end|>",
            ["", "hm\n", "</think>", "\n\nYes.<|im_end|>"],
            "hm",
            "Yes.",
        ),
        (f"{PROMPT}<think>\n", "hm, and", ["", "hm, and", "", ""], "hm, and", ""),
        (PROMPT, "<think>hm, and", ["<think>", "hm, and", "", ""], "hm, and", ""),
        (PROMPT, "<think></think>Yes.", ["<think>", "", "</think>", "Yes."], "", "Yes."),
        (f"{PROMPT}<think>\n\n</think>\n\n", "Yes.<|im_end|>", ["", "", "", "Yes.<|im_end|>"], None, "Yes."),
        (
            PROMPT,
            "<think>a</think>b<think>c</think>d",
            ["<think>", "a", "</think>", "b<think>c</think>d"],
            "a",
            "b<think>c</think>d",
        ),
        ("Explain <think> tags.\n", "Yes.", ["", "", "", "Yes."], None, "Yes."),
        (PROMPT, "One writes <think> and </think>.", ["", "", "", "One writes <think> and </think>."], None, None),
    ],
)
def test_an_answer_is_taken_apart_at_its_tags(
    tokenizer: Any, prompt: str, answer: str, pieces: list[str], reasoning: str | None, text: str | None
) -> None:
    found = parts(tokenizer, prompt, answer)
    is_hidden = not tokenizer.decode(
        ids(tokenizer, "<think>"), skip_special_tokens=True
    )  # then a tag in the answer proper is not in its text
    assert found[:2] == (pieces, reasoning)
    if text is not None and not (is_hidden and "<think>" in text):
        assert found[2] == text


def test_a_tag_that_ends_within_a_token_takes_the_token_and_not_its_text() -> None:
    class Merged:
        """Four tokens, of which one ends the tag and begins the answer."""

        unk_token_id = None

        def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
            return "".join(["<think>", "hm", "</th", "ink>Yes", "."][token] for token in token_ids)

        def convert_tokens_to_ids(self, token: str) -> None:
            return None

    assert split(Merged(), TAGS, [], [0, 1, 2, 3, 4]) == (4, 1, 2, "hm", "Yes.")


def test_without_tags_nothing_is_looked_for(tokenizer: Any) -> None:
    token_ids = ids(tokenizer, "<think>a</think>b")
    assert split(tokenizer, None, [], token_ids)[:4] == (0, 0, 0, None)


def test_other_tags_than_the_usual_ones(tokenizer: Any) -> None:
    token_ids = ids(tokenizer, "[THINK]a[/THINK]b")
    assert split(tokenizer, ("[THINK]", "[/THINK]"), [], token_ids)[3:] == ("a", "b")


@settings(max_examples=150, deadline=None, database=None)
@given(text=st.text(alphabet="<>/think \n🙂a", max_size=40))
def test_any_text_is_taken_apart_without_loss(byte_tokenizer: Path, text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(byte_tokenizer)
    for prompt in ("", "<think>\n"):
        pieces, reasoning, answer = parts(tokenizer, prompt, text)
        assert "".join(pieces) == text
        assert (reasoning is None) == (prompt == "" and not text.lstrip().startswith("<think>"))
        if reasoning is None:
            assert answer == text.strip()


ROW = {
    "prompt_token_ids": [1, 2],
    "token_ids": [10, 11, 12, 13, 14, 15],
    "reasoning_tokens": 4,
    "reasoning_start": 1,
    "reasoning_end": 3,
}


@pytest.mark.parametrize(
    ("how", "context", "answer"),
    [
        ("keep", [1, 2], [10, 11, 12, 13, 14, 15]),
        ("mask", [1, 2, 10, 11, 12, 13], [14, 15]),
        ("drop", [1, 2, 10, 13], [14, 15]),
    ],
)
def test_what_a_student_is_given_and_what_it_learns(how: str, context: list[int], answer: list[int]) -> None:
    assert learnt(ROW, how) == (context, answer)


@pytest.mark.parametrize("how", ["keep", "mask", "drop"])
def test_an_answer_without_reasoning_is_learnt_whole(how: str) -> None:
    nothing = {**ROW, "reasoning_tokens": 0, "reasoning_start": 0, "reasoning_end": 0}
    assert learnt(nothing, how) == ([1, 2], ROW["token_ids"])

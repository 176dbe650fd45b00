import json
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.config import Evaluate
from pipeline.errors import UserError
from pipeline.eval_sets import chat_set
from pipeline.evaluate.tasks import chat
from pipeline.evaluate.tasks.chat import ChatFormat
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.text.repetition import is_repetitive


class Echo:
    """Stands in for a served arm: answers with the number of tokens it was given."""

    name = "student"
    context_tokens = 1000

    def ask(self, requests: list[dict], timed: bool = False) -> dict:
        return {
            "answers": [
                {
                    "request_id": r["request_id"],
                    "token_ids": [len(r["prompt_token_ids"])],
                    "finish_reason": "stop",
                }
                for r in requests
            ]
        }


class Words:
    """A tokenizer whose tokens are words, and whose template joins them."""

    chat_template = "x"

    def apply_chat_template(self, messages: list[dict], tokenize: bool, **_: object) -> list[int] | str:
        text = " ".join(m["content"] for m in messages)
        return list(range(len(text.split()))) if tokenize else text

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(f"n{i}" for i in ids)


def write(path: Path, *items: dict) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_the_second_turn_is_asked_after_the_arms_own_first_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", {"id": "a", "turns": ["one two", "three"]}, {"id": "b", "turns": ["four"]})
    rows = chat.answer(Echo(), chat_set.load(path, None), ChatFormat(ChatTemplate(Words())), Evaluate())  # type: ignore[arg-type]
    assert [(r["item_id"], r["turn"], r["answer"]) for r in rows] == [
        ("a", 0, "n2"),
        ("b", 0, "n1"),
        ("a", 1, "n4"),
    ]


class Careful(Words):
    """Its template refuses an empty answer, and two messages of one role in a row."""

    def apply_chat_template(self, messages: list[dict], tokenize: bool, **how: object) -> list[int] | str:
        roles = [m["role"] for m in messages]
        if not all(m["content"] for m in messages) or any(a == b for a, b in pairwise(roles)):
            raise ValueError("not so")
        return super().apply_chat_template(messages, tokenize, **how)


@pytest.mark.parametrize("silent", [True, False])
def test_a_talk_ends_after_an_empty_answer_that_is_refused_and_where_it_outgrows_the_context(silent: bool) -> None:
    class Arm(Echo):
        context_tokens = 1000 if silent else 4

        def ask(self, requests: list[dict], timed: bool = False) -> dict:
            reply = super().ask(requests, timed)
            for request, answer in zip(requests, reply["answers"], strict=True):
                answer["token_ids"] = [] if silent and request["request_id"] == "a" else answer["token_ids"]
            return reply

    items = [
        chat_set.ChatItem(id=name, turns=(first, "two", "three")) for name, first in (("a", "one"), ("b", "one more"))
    ]
    rows = chat.answer(Arm(), items, ChatFormat(ChatTemplate(Careful())), Evaluate())  # type: ignore[arg-type]
    turns = [(row["item_id"], row["turn"]) for row in rows]
    assert turns == [("a", 0), ("b", 0), ("b", 1), ("b", 2)] if silent else [("a", 0), ("b", 0), ("a", 1)]


def test_a_limit_takes_from_every_category(tmp_path: Path) -> None:
    items = [{"id": f"{c}{i}", "category": c, "turns": ["q"]} for c in "xyz" for i in range(5)]
    chosen = chat_set.load(write(tmp_path / "set.jsonl", *items), 6)
    assert [item.id for item in chosen] == ["x0", "y0", "z0", "x1", "y1", "z1"]


@pytest.mark.parametrize(
    ("line", "said"),
    [('{"id": "a"}', "turns"), ("{oops", "JSON"), ('{"id": "a", "turns": [], "x": 1}', ":2: ")],
)
def test_a_bad_item_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"id": "ok", "turns": ["q"]}\n' + line + "\n")
    with pytest.raises(UserError, match=r"set\.jsonl:2: ") as caught:
        chat_set.load(path, None)
    assert said in str(caught.value)


def test_a_missing_set_says_how_to_do_without(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="null for none"):
        chat_set.load(tmp_path / "none.jsonl", None)


def test_loops_are_seen_and_prose_is_not() -> None:
    assert is_repetitive("It is. " * 5)
    assert is_repetitive("one two three four five six seven eight nine ten eleven " * 6)
    assert not is_repetitive("Rain is water that falls from clouds. It fills rivers, and feeds plants.")

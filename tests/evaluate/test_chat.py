import json
from pathlib import Path

import pytest

from pipeline import chat_set
from pipeline.chat_template import ChatTemplate
from pipeline.config import Evaluate
from pipeline.errors import UserError
from pipeline.evaluate import chat
from pipeline.evaluate.chat import Manner
from pipeline.repetition import is_repetitive


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
    rows = chat.answer(Echo(), chat_set.load(path, None), Manner(ChatTemplate(Words())), Evaluate())  # type: ignore[arg-type]
    assert [(r["item_id"], r["turn"], r["answer"]) for r in rows] == [
        ("a", 0, "n2"),
        ("b", 0, "n1"),
        ("a", 1, "n4"),
    ]


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

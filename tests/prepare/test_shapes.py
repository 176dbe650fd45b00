"""prepare with a chat template that does not take every conversation, and with one that asks for the date."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline import prepare
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.models.lookup import chat_template_of

ALTERNATING = (  # after Gemma 2
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
USER = {"role": "user", "content": "Hi"}


def test_system_messages_and_two_questions_in_a_row_are_taken_by_every_template(
    prepared: Any, other_teacher: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prepared.teacher = other_teacher(ALTERNATING)
    rows = [{"messages": [USER]}, {"messages": [USER, {"role": "user", "content": "Who?"}]}]
    counts = prepared.do(prepared.lines(*rows) | {"system": "Be brief."})
    tokenizer = lookup.find(str(prepared.teacher)).tokenizer()
    texts = [tokenizer.decode(row["prompt_token_ids"]) for row in prepared.rows()]
    assert texts == [
        "<|im_start|>user\nBe brief.\n\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nBe brief.\n\nHi\n\nWho?<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert (counts["system_in_user_turn"], counts["turns_merged"]) == (2, 1)
    assert [m["role"] for m in prepared.rows()[0]["messages"]] == ["system", "user"], "as the source has it"
    assert prepared.run_dir.manifest("prepare")["chat_template"]["takes_system"] is False
    assert "does not take some system messages" in " ".join(capsys.readouterr().err.split())


def test_what_evaluate_will_ask_is_rendered_before_anything_is_written(
    prepared: Any, other_teacher: Callable[[str], Path]
) -> None:
    once = "{% if messages | length > 1 %}{{ raise_exception('One alone') }}{% endif %}{{ messages[0].content }}"
    prepared.teacher = other_teacher(once)
    with pytest.raises(UserError, match=r"chat_eval\.jsonl: item \S+ can't be asked of the teacher: .*One alone"):
        prepared.do(prepared.lines({"prompt": "Hi"}))
    assert not prepared.run_dir.path.exists()


class Then(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime(2031, 5, 6, 12, tzinfo=tz)


def test_the_date_is_that_of_the_day_prepare_began(
    prepared: Any, other_teacher: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared.teacher = other_teacher(DATED)
    monkeypatch.setattr(prepare, "datetime", Then)
    prepared.do(prepared.lines({"prompt": "Hi"}))
    tokenizer = lookup.find(str(prepared.teacher)).tokenizer()
    [row] = prepared.rows()
    assert tokenizer.decode(row["prompt_token_ids"]).startswith("2031-05-06 Hi")
    assert prepared.run_dir.manifest("prepare")["fingerprint"]["teacher.date"] == "2031-05-06"
    assert chat_template_of(prepared.run_dir, tokenizer).render([USER]) == row["prompt_token_ids"]
    monkeypatch.undo()  # another day
    prepared.do(prepared.lines({"prompt": "Hi"}))
    assert prepared.rows() == [row], "done already"


def test_a_template_without_a_date_leaves_none_in_the_fingerprint(prepared: Any) -> None:
    prepared.do(prepared.lines({"prompt": "Hi"}))
    assert prepared.run_dir.manifest("prepare")["fingerprint"]["teacher.date"] is None


def test_a_token_without_an_embedding_is_told_with_its_row(prepared: Any, other_teacher: Callable[[str], Path]) -> None:
    """Gemma 3's tokenizer has one token more than its text models have rows."""
    prepared.teacher = folder = other_teacher("{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer = lookup.find(str(folder)).tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == len(tokenizer) - 1
    prepared.do(prepared.lines({"prompt": "Hi"}))
    prepared.run_dir.discard_from("prepare")
    with pytest.raises(UserError, match=r"a\.jsonl:1: .*a token that the teacher has no embedding for"):
        prepared.do(prepared.lines({"prompt": "See <image>"}))

"""prepare with answers to be scored, with tools, and with reasoning in the template."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import prepare
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.prepare.conversations import prompt_id
from pipeline.records import is_held_out

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}
THANKS = {"role": "user", "content": "Thanks"}
WELCOME = {"role": "assistant", "content": "Sure."}
CONTEXT = 160  # of the teacher in conftest.py
# after Qwen3: an answer without reasoning is written with an empty block
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opening }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content or '' }}{% for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "</call>{% endfor %}{% if m.tool_call_id is defined %}({{ m.tool_call_id }}){% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Scored:
    """prepare in score mode."""

    def __init__(self, prepared: Any) -> None:
        self.prepared = prepared

    def config(self, *rows: dict[str, Any], kwargs: dict[str, Any] | None = None, **settings: Any) -> Config:
        config = self.prepared.config(self.prepared.lines(*rows), **settings)
        generate = config.generate.model_copy(update={"mode": "score"})
        teacher = config.teacher.model_copy(update={"chat_template_kwargs": kwargs or {}})
        return config.model_copy(update={"generate": generate, "teacher": teacher})

    def do(self, *rows: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
        prepare.run(self.config(*rows, **settings), self.prepared.run_dir)
        return self.prepared.rows()

    def written(self, row: dict[str, Any]) -> tuple[str, str]:
        tokenizer = lookup.find(str(self.prepared.teacher)).tokenizer()
        return tokenizer.decode(row["prompt_token_ids"]), tokenizer.decode(row["completion_token_ids"])


@pytest.fixture
def scored(prepared: Any) -> Scored:
    return Scored(prepared)


def plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def test_an_answer_is_what_the_template_adds_through_its_end_of_turn(scored: Scored) -> None:
    [row] = scored.do({"prompt": "Hi", "completion": "Hello."})
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert scored.written(row) == (prompt, "Hello.<|im_end|>")
    tokenizer = lookup.find(str(scored.prepared.teacher)).tokenizer()
    assert row["prompt_token_ids"] == ChatTemplate(tokenizer).render([USER])
    assert plain(row["messages"]) == [USER]


def test_every_turn_of_a_conversation_is_a_row_of_its_own(scored: Scored) -> None:
    rows = scored.do({"messages": [USER, ANSWER, THANKS, WELCOME], "category": "x"})
    assert [plain(row["messages"]) for row in rows] == [[USER], [USER, ANSWER, THANKS]]
    assert [scored.written(row)[1] for row in rows] == ["Hello.<|im_end|>", "Sure.<|im_end|>"]
    assert {(row["source"], row["category"]) for row in rows} == {(f"{scored.prepared.folder}/a.jsonl:1", "x")}


def test_two_answers_to_a_prompt_are_two_rows_and_the_same_one_twice_is_one(scored: Scored) -> None:
    rows = scored.do(*({"prompt": "Hi", "completion": answer} for answer in ("Hello.", "Hey.", "Hello.")))
    assert [scored.written(row)[1] for row in rows] == ["Hello.<|im_end|>", "Hey.<|im_end|>"]
    assert len({row["prompt_id"] for row in rows}) == 2
    assert scored.prepared.run_dir.manifest("prepare")["counts"]["duplicates"] == 1


def test_nearly_the_same_prompt_stays_with_another_answer_on_its_own_side_alone(scored: Scored) -> None:
    """Long prompts that differ in a comma: never one to train on beside one that is held out."""
    long = [f"What of case {n}: {' '.join(f'w{n}x{m}' for m in range(12))}" for n in range(30)]
    given = [
        {"prompt": text + mark, "completion": f"It is the {word} one."}
        for text in long
        for mark, word in (("?", "first and better"), (" ?!", "last and worse"), (" ?", "last and worse"))
    ]
    rows = scored.do(*given, held_out_frac=0.4)
    sides: dict[str, set[str]] = {text: set() for text in long}
    for row in rows:
        sides[row["messages"][0]["content"].rstrip(" ?!")].add(row["split"])
    assert {len(split) for split in sides.values()} == {1}
    counts = scored.prepared.run_dir.manifest("prepare")["counts"]
    assert len(rows) > 45
    assert len(rows) + counts["near_duplicates"] == 90


def test_no_conversation_and_no_prompt_is_on_both_sides(scored: Scored) -> None:
    given = []
    for n in range(40):
        first = {"role": "user", "content": f"Question {n}"}
        given += [{"messages": [first, ANSWER, THANKS, WELCOME]}, {"messages": [first, WELCOME]}]
    rows = scored.do(*given, held_out_frac=0.3)
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["messages"][0]["content"], set()).add(row["split"])
    assert len(rows) == 120
    assert all(len(side) == 1 for side in sides.values())
    assert {side for (side,) in sides.values()} == {"train", "held_out"}
    # as in a run in which the teacher answers the same questions
    assert all((row["split"] == "held_out") == is_held_out(prompt_id(plain(row["messages"][:1])), 0.3) for row in rows)


def test_a_conversation_may_fill_the_context_but_for_one_token(scored: Scored) -> None:
    [row] = scored.do({"prompt": "x", "completion": "y"})
    room = CONTEXT - len(row["prompt_token_ids"]) - len(row["completion_token_ids"])
    scored.prepared.run_dir.discard_from("prepare")
    [row] = scored.do({"prompt": "x", "completion": "y" * room})
    assert len(row["prompt_token_ids"]) + len(row["completion_token_ids"]) == CONTEXT - 1
    scored.prepared.run_dir.discard_from("prepare")
    with pytest.raises(UserError, match=rf"a\.jsonl:1: conversation too long: its \d+ \+ \d+ tokens .* of {CONTEXT}"):
        scored.do({"prompt": "x", "completion": "y" * (room + 1)})


def test_a_row_without_an_answer_is_told_with_its_place(scored: Scored) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:2: no answer to be scored"):
        scored.do({"prompt": "Hi", "completion": "Hello."}, {"prompt": "Ho"})


def test_a_run_of_prompts_is_not_gone_on_with_as_one_of_answers(scored: Scored) -> None:
    row = {"prompt": "Hi", "completion": "Hello."}
    scored.prepared.do(scored.prepared.lines(row))
    with pytest.raises(UserError, match=r'generate\.mode was "sample", is "score"'):
        scored.do(row)


# --- templates


@pytest.mark.parametrize(
    ("answer", "kwargs", "completion"),
    [
        (ANSWER, {}, "<think>\n\n</think>\n\nHello.<|im_end|>"),
        ({**ANSWER, "reasoning_content": "hm"}, {}, "<think>\nhm\n</think>\n\nHello.<|im_end|>"),
        ({**ANSWER, "reasoning_content": "hm"}, {"opening": "<think>\n"}, "hm\n</think>\n\nHello.<|im_end|>"),
        (ANSWER, {"opening": "<think>\n\n</think>\n\n"}, "Hello.<|im_end|>"),
    ],
    ids=["an empty block", "reasoning", "opened in the prompt", "closed in the prompt"],
)
def test_reasoning_is_scored_as_the_template_writes_it(
    scored: Scored, other_teacher: Callable[[str], Path], answer: Any, kwargs: Any, completion: str
) -> None:
    scored.prepared.teacher = other_teacher(THINKING)
    [row] = scored.do({"messages": [USER, answer]}, kwargs=kwargs)
    assert scored.written(row)[1] == completion


def test_an_answer_that_the_template_writes_elsewhere_is_refused(
    scored: Scored, other_teacher: Callable[[str], Path]
) -> None:
    scored.prepared.teacher = other_teacher(THINKING)
    row = {"messages": [USER, {**ANSWER, "reasoning_content": "hm"}]}
    with pytest.raises(UserError, match=r"a\.jsonl:1: .*opens the turn with '.n</think>.* writes 'hm.n</think>"):
        scored.do(row, kwargs={"opening": "<think>\n\n</think>\n\n"})


def test_a_template_that_never_ends_a_turn_is_refused(scored: Scored, other_teacher: Callable[[str], Path]) -> None:
    scored.prepared.teacher = other_teacher("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(UserError, match="does not end an answer with an end-of-turn token"):
        scored.do({"messages": [USER, ANSWER]})


def test_the_end_of_turn_may_be_one_of_the_generation_configs(
    scored: Scored, other_teacher: Callable[[str], Path]
) -> None:
    """As Gemma's: its tokenizer's eos is another token."""
    scored.prepared.teacher = other_teacher("{% for m in messages %}<|im_start|>{{ m.content }}|\n{% endfor %}")
    tokenizer = lookup.find(str(scored.prepared.teacher)).tokenizer()
    [bar] = tokenizer("|", add_special_tokens=False).input_ids
    (scored.prepared.teacher / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, bar]}))
    [row] = scored.do({"messages": [USER, ANSWER]})
    assert scored.written(row)[1] == "<|im_start|>Hello.|"


def test_a_token_that_would_reach_over_the_border_is_cut_there(byte_tokenizer: Path) -> None:
    """Where the whole is cut otherwise than the prompt alone, the answer is cut alone: so the teacher would begin."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(byte_tokenizer)
    tokenizer.add_tokens(["\n\n"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    answer = {"role": "assistant", "content": "\nHi"}
    ids = ChatTemplate(tokenizer).render_completion([USER], answer, None, frozenset([tokenizer.eos_token_id]))
    assert tokenizer.convert_ids_to_tokens(ids) == ["Ċ", "H", "i", "<|im_end|>"]


# --- tools

TOOL = {"type": "function", "function": {"name": "weather"}}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}],
}
RESULT = {"role": "tool", "content": "rain", "tool_call_id": "c1"}
CALLED = '<call>weather {"city": "Oslo"}</call>'


def test_tools_and_calls_reach_the_template_and_are_stored(prepared: Any, other_teacher: Callable[[str], Path]) -> None:
    prepared.teacher = other_teacher(TOOLS)
    prepared.do(prepared.lines({"messages": [USER, CALLING, RESULT], "tools": [TOOL]}))
    [row] = prepared.rows()
    tokenizer = lookup.find(str(prepared.teacher)).tokenizer()
    assert tokenizer.decode(row["prompt_token_ids"]) == (
        f"{json.dumps([TOOL])}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{CALLED}<|im_end|>\n"
        "<|im_start|>tool\nrain(c1)<|im_end|>\n<|im_start|>assistant\n"
    )
    assert json.loads(row["tools"]) == [TOOL]
    [_, call, result] = plain(row["messages"])
    assert json.loads(call["tool_calls"])[0]["function"]["arguments"] == {"city": "Oslo"}
    assert result == RESULT


def test_a_call_can_be_scored(scored: Scored, other_teacher: Callable[[str], Path]) -> None:
    scored.prepared.teacher = other_teacher(TOOLS)
    rows = scored.do({"messages": [USER, CALLING, RESULT, ANSWER], "tools": json.dumps([TOOL])})
    assert [scored.written(row)[1] for row in rows] == [f"{CALLED}<|im_end|>", "Hello.<|im_end|>"]


def test_what_was_stored_can_be_read_again(prepared: Any, other_teacher: Callable[[str], Path]) -> None:
    """A corpus that Retort wrote is a source like another."""
    prepared.teacher = other_teacher(TOOLS)
    prepared.do(prepared.lines({"messages": [USER, CALLING, RESULT], "tools": [TOOL]}))
    [first] = prepared.rows()
    prepared.run_dir.discard_from("prepare")
    prepared.do(prepared.lines({"messages": first["messages"], "tools": first["tools"]}, name="b.jsonl"))
    [again] = prepared.rows()
    assert {**again, "source": ""} == {**first, "source": ""}


def test_the_same_words_with_other_tools_are_another_prompt(
    prepared: Any, other_teacher: Callable[[str], Path]
) -> None:
    prepared.teacher = other_teacher(TOOLS)
    counts = prepared.do(prepared.lines({"prompt": "Hi"}, {"prompt": "Hi", "tools": [TOOL]}, {"prompt": "Hi"}))
    assert (counts["prompts"], counts["duplicates"]) == (2, 1)
    assert prepared.rows()[0]["prompt_id"] == prompt_id([USER])


def test_a_template_that_leaves_tool_calls_out_is_told(scored: Scored, other_teacher: Callable[[str], Path]) -> None:
    """The demo teacher's kind: it writes a message's content, and nothing else."""
    empty = {**CALLING, "content": ""}
    with pytest.raises(UserError, match=r":1: .* leaves out tool calls \(here of weather\)"):
        scored.do({"messages": [USER, empty, RESULT, ANSWER]})
    scored.prepared.teacher = other_teacher("{% for m in messages %}{{ '<|im_start|>' + m.content }}{% endfor %}")
    with pytest.raises(UserError, match=r":1: .* leaves out tool calls \(here of weather\)"):
        scored.do({"messages": [USER, CALLING, RESULT, ANSWER]})
    with pytest.raises(UserError, match=r":1: .* leaves out the tools that it may call"):
        scored.do({"messages": [USER, ANSWER], "tools": [TOOL]})

"""The formats that people have: each is told by its columns, and read in both modes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, Sequence, Value
from datasets import Features as Columns
from openai.types.chat import ChatCompletionMessageParam
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter
from trl import data_utils

from pipeline import prepare
from pipeline.config import Source
from pipeline.corpora import BadRowError, read
from pipeline.errors import UserError
from pipeline.prepare.sources import SourceSummary, columns_of, pairs_of, previews, prompt_of, tools_of

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}
MORE = {"role": "user", "content": "Why?"}
LAST = {"role": "assistant", "content": "Because."}
WHOLE = [SYSTEM, USER, ANSWER, MORE, LAST]
FUNCTION = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "rain"}
Row = dict[str, Any]


def said(*messages: Row) -> list[Row]:
    """The messages as ShareGPT has them."""
    names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    return [{"from": names[message["role"]], "value": message["content"]} for message in messages]


INPUT = "Translate.\n\ncat"
SHAREGPT = {"id": "x1", "conversations": said(*WHOLE)}
CALLED = [
    {"from": "human", "value": "Hi"},
    {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})},
    {"from": "observation", "value": "rain"},
    {"from": "gpt", "value": "Because."},
]
PARTS = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]
BOTH = {"role": "user", "content": "Hi\nthere"}
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: Because."
ALPACA = {"instruction": "Translate.", "input": "cat", "output": "Hello."}
BATCH = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions"}
ASKED = {"role": "user", "content": INPUT}
Answers = list[tuple[list[Row], Row]]
ONE: tuple[list[Row], Answers] = ([USER], [([USER], ANSWER)])
BRIEF: tuple[list[Row], Answers] = ([SYSTEM, USER], [([SYSTEM, USER], ANSWER)])
JOINED: tuple[list[Row], Answers] = ([ASKED], [([ASKED], ANSWER)])
TWO: tuple[list[Row], Answers] = (WHOLE[:4], [(WHOLE[:2], ANSWER), (WHOLE[:4], LAST)])
SECOND: tuple[list[Row], Answers] = ([USER, ANSWER, MORE], [([USER, ANSWER, MORE], LAST)])
CALLS: tuple[list[Row], Answers] = ([USER, CALLING, RESULT], [([USER], CALLING), ([USER, CALLING, RESULT], LAST)])
OLDER_CALL = {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
OLDER_ROLES = [{**SYSTEM, "role": "developer"}, USER, {**RESULT, "role": "function"}, {**RESULT, "role": "ipython"}]
REJECTED = {"role": "assistant", "content": "No."}
NONE: Answers = []

# (row, what it is taken for, the prompt, each answer to be scored with all that stands before it)
FORMATS: dict[str, tuple[Row, str, list[Row], Answers]] = {
    "OpenAI": ({"messages": WHOLE}, "of OpenAI messages (messages)", *TWO),
    "OpenAI, parts": (
        {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": PARTS[:1]}]},
        "of OpenAI messages (messages)",
        [BOTH],
        [([BOTH], {**ANSWER, "content": "Hi"})],
    ),
    "OpenAI, other roles": (
        {"messages": [*OLDER_ROLES, ANSWER]},
        "of OpenAI messages (messages)",
        [SYSTEM, USER, RESULT, RESULT],
        [([SYSTEM, USER, RESULT, RESULT], ANSWER)],
    ),
    "OpenAI, an older call": ({"messages": [USER, OLDER_CALL, RESULT, LAST]}, "of OpenAI messages (messages)", *CALLS),
    "OpenAI, no system": ({"messages": [{**SYSTEM, "content": " "}, USER, ANSWER]}, "of OpenAI messages", *ONE),
    "OpenAI batch": (
        {**BATCH, "body": {"model": "m", "messages": [SYSTEM, USER]}},
        "of OpenAI batch requests (body.messages)",
        [SYSTEM, USER],
        NONE,
    ),
    "OpenAI preference": (
        {"input": {"messages": [USER, ANSWER, MORE]}, "preferred_output": [LAST], "non_preferred_output": [REJECTED]},
        "of OpenAI preference pairs (input.messages)",
        *SECOND,
    ),
    "ShareGPT": (SHAREGPT, "of ShareGPT (conversations)", *TWO),
    "ShareGPT, calls": ({"conversations": CALLED}, "of ShareGPT (conversations)", *CALLS),
    "ShareGPT, system": ({"system": "Be brief.", "conversations": said(USER, ANSWER)}, "of ShareGPT", *BRIEF),
    "WildChat": ({"conversation": [{**USER, "country": "NO"}, ANSWER]}, "of ShareGPT (conversation)", *ONE),
    "LIMA": ({"conversations": ["Hi", "Hello."]}, "of ShareGPT (conversations)", *ONE),
    "LLaMA-Factory": (
        {"conversations": said(USER), "chosen": said(ANSWER)[0], "rejected": said(LAST)[0]},
        "of ShareGPT (conversations)",
        *ONE,
    ),
    "Alpaca": (
        {"instruction": "Translate.", "input": "cat", "output": "Hello."},
        "of Alpaca (instruction, input)",
        *JOINED,
    ),
    "Alpaca, empty input": ({"instruction": "Hi", "input": "", "output": "Hello."}, "of Alpaca (instruction)", *ONE),
    "Alpaca, null input": (
        {"instruction": "Hi", "input": None, "output": "Hello.", "text": "Below is"},
        "of Alpaca (instruction)",
        *ONE,
    ),
    "Alpaca, history": (
        {"system": "Be brief.", "instruction": "Why?", "history": [["Hi", "Hello."]], "output": "Because."},
        "of Alpaca (instruction, history)",
        *TWO,
    ),
    "Dolly": (
        {"instruction": "Translate.", "context": "cat", "response": "Hello."},
        "of Alpaca (instruction, context)",
        *JOINED,
    ),
    "MT-bench": ({"question_id": 81, "turns": ["Hi", "Why?"]}, "of turns (turns)", [USER], NONE),
    "a prompt": ({"prompt": "Hi", "response": "Hello."}, "of prompts (prompt)", *ONE),
    "TRL, text": ({"prompt": "Hi", "completion": "Hello."}, "of prompts (prompt)", *ONE),
    "TRL": (
        {"prompt": [USER, ANSWER, MORE], "completion": [LAST]},
        "of conversational prompts (prompt)",
        *SECOND,
    ),
    "chosen, whole": (
        {"chosen": [USER, ANSWER], "rejected": [USER, REJECTED]},
        "of preference pairs (chosen)",
        *ONE,
    ),
    "chosen, answer": (
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [REJECTED]},
        "of preference pairs (prompt)",
        *ONE,
    ),
    "chosen, text": ({"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}, "of preference pairs (prompt)", *ONE),
    "chosen, UltraFeedback": (
        {"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, REJECTED]},
        "of preference pairs (chosen)",
        *ONE,
    ),
    "chosen, a question's": (
        {"system": "Be brief.", "question": "Hi", "chosen": "Hello.", "rejected": "No."},
        "of preference pairs (question)",
        *BRIEF,
    ),
    "chosen, Anthropic": (
        {"chosen": HH, "rejected": HH.replace("Because.", "No.")},
        "of preference pairs (chosen)",
        [USER, ANSWER, MORE],
        [([USER], ANSWER), ([USER, ANSWER, MORE], LAST)],
    ),
    "chosen, Anthropic's prompt": (
        {"prompt": HH.removesuffix(" Because."), "chosen": "Because.", "rejected": "No."},
        "of preference pairs (prompt)",
        *SECOND,
    ),
    "GSM8K": ({"question": "Hi", "answer": "Hello."}, "of questions and answers (question)", *ONE),
    "MATH": (
        {"problem": "Hi", "solution": "Hello.", "answer": "42"},
        "of questions and answers (problem)",
        *ONE,
    ),
    "OpenOrca": (
        {"system_prompt": "Be brief.", "question": "Hi", "response": "Hello."},
        "of questions and answers (question)",
        *BRIEF,
    ),
    "MetaMath": ({"query": "Hi", "response": "Hello.", "type": "GSM"}, "of questions and answers (query)", *ONE),
}


def meaning(row: Row, **source: Any) -> list[Row]:
    return prompt_of(row, Source(path="a.jsonl", **source), None)


def pairs(row: Row, **source: Any) -> list[tuple[list[Row], Row]]:
    return pairs_of(row, Source(path="a.jsonl", **source), None)


def written_by_json(row: Row, folder: Path) -> Source:
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n")
    return Source(path=str(folder / "a.jsonl"))


def written_by_datasets(row: Row, folder: Path) -> Source:
    Dataset.from_list([row, row]).to_parquet(folder / "a.parquet")
    return Source(path=str(folder / "a.parquet"), limit=1)


def written_by_pandas(row: Row, folder: Path) -> Source:
    pd.DataFrame([row]).to_json(folder / "a.json", orient="records", indent=2)
    return Source(path=str(folder / "a.json"))


def written_as_csv(row: Row, folder: Path) -> Source:
    """Lists as Python writes them: pandas knows no better."""
    pd.DataFrame([row]).to_csv(folder / "a.csv", index=False)
    return Source(path=str(folder / "a.csv"))


WRITERS = (written_by_json, written_by_datasets, written_by_pandas, written_as_csv)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_told_and_read_in_both_modes(
    name: str, write: Callable[[Row, Path], Source], tmp_path: Path
) -> None:
    row, what, prompt, answers = FORMATS[name]
    source, tally = write(row, tmp_path), SourceSummary()
    [(_, found)] = read(source, columns_of(source, None, is_scored=False))
    assert isinstance(found, dict)
    assert prompt_of(found, source, None, tally) == prompt
    assert next(iter(tally.told())).startswith(f"1 row {what.removesuffix(')')}")
    [(_, found)] = read(source, columns_of(source, None, is_scored=True))
    assert isinstance(found, dict)
    if not answers:
        with pytest.raises(BadRowError, match="no answer to be scored"):
            pairs_of(found, source, None)
    else:
        assert pairs_of(found, source, None) == answers


# --- what other packages say of the same rows


def test_the_messages_of_a_batch_file_are_what_openai_takes() -> None:
    body: Any = {"model": "m", "messages": [SYSTEM, {"role": "user", "content": PARTS}], "tools": [TOOL]}
    TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(body)
    assert meaning({**BATCH, "body": body}) == [SYSTEM, BOTH]
    assert tools_of({**BATCH, "body": body}, Source(path="a.jsonl")) == [TOOL]


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if name.startswith(("OpenAI", "ShareGPT", "Alpaca", "chosen"))]
)
def test_what_is_read_is_what_openai_takes(name: str) -> None:
    for message in meaning(FORMATS[name][0]):
        TypeAdapter(ChatCompletionMessageParam).validate_python(_with_ids(message))


def _with_ids(message: Row) -> Row:
    """With what OpenAI asks for and the format does not have."""
    if message["role"] == "tool":
        return {"tool_call_id": "c1", **message}
    if not (calls := message.get("tool_calls")):
        return message
    function = {**calls[0]["function"], "arguments": json.dumps(calls[0]["function"]["arguments"])}
    return {**message, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


def test_pairs_are_split_as_trl_splits_them() -> None:
    pair: Any = {"chosen": [USER, ANSWER], "rejected": [USER, LAST]}
    split: Any = data_utils.extract_prompt(pair)
    assert split == {"prompt": [USER], "chosen": [ANSWER], "rejected": [LAST]}
    assert meaning(split) == meaning(pair)
    assert pairs(split) == pairs(pair)


def test_unpaired_preferences_of_trl_are_prompts_with_completions() -> None:
    pair = {"prompt": [USER], "chosen": [ANSWER], "rejected": [LAST]}
    rows: Any = data_utils.unpair_preference_dataset(Dataset.from_list([pair]))
    assert [pairs(row) for row in rows] == [[([USER], ANSWER)], [([USER], LAST)]]


def test_a_sequence_of_objects_is_turned_round(tmp_path: Path) -> None:
    """`datasets` writes a Sequence of objects as an object of lists."""
    columns = Columns({"conversations": Sequence({"from": Value("string"), "value": Value("string")})})
    chats = {key: [message[key] for message in said(USER, ANSWER)] for key in ("from", "value")}
    Dataset.from_dict({"conversations": [chats]}, columns).to_parquet(tmp_path / "a.parquet")
    source = Source(path=str(tmp_path / "a.parquet"))
    [(_, row)] = read(source)
    assert isinstance(row, dict)
    assert isinstance(row["conversations"], dict)
    assert pairs_of(row, source, None) == [([USER], ANSWER)]


# --- what is left out, and what is refused


def tally_of(*rows: Row, **source: Any) -> list[str]:
    tally, of = SourceSummary(), Source(path="a.jsonl", **source)
    for row in rows:
        prompt_of(row, of, None, tally)
    return list(tally.told())


def test_one_line_says_what_the_rows_were_taken_for() -> None:
    rows = [SHAREGPT, SHAREGPT, {**ALPACA, "input": None}, ALPACA]
    assert tally_of(*rows) == ["2 rows of ShareGPT (conversations), 2 rows of Alpaca (instruction, input)"]
    assert tally_of({"ask": "Hi"}, prompt="ask") == ["1 row by the columns that the source names (ask)"]
    assert tally_of() == []


@pytest.mark.parametrize("nothing", [None, "", " \n", []])
def test_a_conversation_ends_before_an_empty_answer(nothing: Any) -> None:
    row = {"messages": [USER, ANSWER, MORE, {"role": "assistant", "content": nothing}, USER]}
    assert meaning(row) == [USER, ANSWER, MORE]
    assert pairs(row) == [([USER], ANSWER)]
    assert tally_of(row, row)[1:] == ["2 conversations cut before an empty answer"]


def test_later_turns_are_counted() -> None:
    told = tally_of({"turns": ["Hi", "Why?"]}, {"turns": ["Hi"]})
    assert told[1:] == [
        "1 row with later turns, which need the teacher's answers before them: the first turn alone is asked"
    ]


def test_a_part_that_is_no_text_is_refused_by_its_type() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    with pytest.raises(BadRowError, match="a user message holds a part of type image_url: only text is understood"):
        meaning({"messages": [{"role": "user", "content": [*PARTS, image]}]})
    with pytest.raises(BadRowError, match="an assistant message holds a part without a type"):
        pairs({"messages": [USER, {"role": "assistant", "content": [5]}]})


def test_the_answers_in_a_prompt_of_its_own_are_context() -> None:
    assert len(pairs({"messages": [USER, ANSWER, MORE, LAST]})) == 2
    assert len(pairs({"prompt": [USER, ANSWER, MORE], "completion": [LAST]})) == 1


def test_a_chosen_conversation_may_go_on_from_a_prompt() -> None:
    assert pairs({"prompt": [USER, ANSWER], "chosen": [MORE, LAST]}) == [([USER, ANSWER, MORE], LAST)]
    whole = [USER, ANSWER, MORE, LAST]
    assert pairs({"prompt": [USER], "chosen": whole}) == pairs({"chosen": whole})


def test_a_column_that_the_source_names_wins() -> None:
    row = {"messages": [USER, ANSWER], "ask": "Why?", "reply": "Because.", "system": "Be brief."}
    assert meaning(row, prompt="ask") == [MORE]
    assert pairs(row, prompt="ask", completion="reply") == [([MORE], LAST)]
    assert pairs({"question": "Why?", "answer": "42", "reply": "Because."}, completion="reply") == [([MORE], LAST)]
    assert pairs({"messages": [USER, ANSWER, MORE], "reply": "Because."}, completion="reply") == [
        ([USER, ANSWER, MORE], LAST)
    ]
    assert meaning({"messages": [USER], "dialog": said(MORE)}, messages="dialog") == [MORE]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"question": "Which?", "choices": ["a", "b"], "answer": "a"}, "column 'choices' belongs to the question"),
        ({"question": "Which?", "context": {"title": ["a"]}}, r"column 'context' is not text \(object\): a `template`"),
        ({"instruction": ["Hi"]}, r"column 'instruction' is not text \(list\)"),
        ({"instruction": "Hi", "history": "earlier"}, "column 'history' is not JSON"),
        ({"instruction": "Hi", "history": [["Hi"]]}, "column 'history' is not a list of pairs"),
        ({"system": 5, "prompt": "Hi"}, r"column 'system' is not text \(number\)"),
        ({"turns": 5}, "messages is not a list"),
        ({"turns": "Hi"}, "column 'turns' is not a JSON list of texts"),
        ({"conversations": []}, "messages is not a list"),
        ({"conversations": [{"from": "human", "value": None}]}, "empty prompt"),
        (
            {"conversations": [USER, {"from": "function_call", "value": "weather()"}, USER]},
            "a function call is not JSON",
        ),
        ({"chosen": "Hello.", "rejected": "No."}, "no prompt is found in it"),
        ({"body": {"input": "Hi"}}, "no prompt is found in it"),
        ({"text": "Hi"}, r"prepare\.sources=\[\{path: a\.jsonl, prompt: text\}\]"),
    ],
)
def test_what_can_not_be_a_prompt_is_told(row: Row, why: str) -> None:
    with pytest.raises(BadRowError, match=why) as caught:
        meaning(row)
    assert "\n" not in str(caught.value)


# --- tools


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": CALLED, "tools": json.dumps([FUNCTION])},
        {"conversations": CALLED, "tools": [FUNCTION]},
        {"messages": [USER], "functions": [FUNCTION]},
        {"input": {"messages": [USER], "tools": [TOOL]}, "preferred_output": [ANSWER]},
        {"body": {"messages": [USER], "functions": [FUNCTION]}},
        {"query": "Hi", "answers": "[]", "tools": json.dumps([FUNCTION])},
    ],
)
def test_the_tools_of_each_format_come_in_their_envelopes(row: Row) -> None:
    assert tools_of(row, Source(path="a.jsonl")) == [TOOL]


def test_tools_of_another_kind_stay_as_they_are() -> None:
    other = {"type": "retrieval", "name": "search"}
    assert tools_of({"tools": [other]}, Source(path="a.jsonl")) == [other]
    with pytest.raises(BadRowError, match=r"body\.tools is not a list of tools"):
        tools_of({"body": {"messages": [USER], "tools": {"a": 1}}}, Source(path="a.jsonl"))


# --- the page on data

PAGE = (Path(prepare.__file__).parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\*\*([^*]+)\*\*.*?\n\n```jsonl\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("name", "lines"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_each_example_of_the_page_on_data_is_read_as_what_it_says(name: str, lines: str) -> None:
    for row in map(json.loads, lines.splitlines()):
        assert tally_of(row)[0].startswith(f"1 row of {name} (")
        tools_of(row, Source(path="a.jsonl"))
        if name not in ("turns", "OpenAI batch requests"):
            assert pairs(row)


def test_the_page_on_data_shows_every_format() -> None:
    shown = {f"of {name}" for name, _ in EXAMPLES}
    assert {what.partition(" (")[0] for _, what, *_ in FORMATS.values()} == shown


# --- prepare


def test_prepare_says_in_one_line_what_it_took_a_file_for(prepared: Any, capsys: pytest.CaptureFixture[str]) -> None:
    chats = prepared.lines(*({"conversations": said({**USER, "content": f"Question {n}"}, ANSWER)} for n in range(3)))
    sums = prepared.file("sums.csv", "question,answer\nHow many?,5\nHow much?,6\n")
    prepared.do(chats, sums)
    told = [line for line in capsys.readouterr().err.splitlines() if " of " in line and "prepare: /" in line]
    assert [line.replace(f"{prepared.folder}/", "") for line in told] == [
        "prepare: a.jsonl: 3 rows of ShareGPT (conversations)",
        "prepare: sums.csv: 2 rows of questions and answers (question)",
    ]


def test_it_says_so_too_if_no_more_prompts_are_wanted(prepared: Any, capsys: pytest.CaptureFixture[str]) -> None:
    prepared.do(prepared.lines(*({"question": f"What of {n}?"} for n in range(9))), max_prompts=2)
    assert re.search(r"a\.jsonl: \d rows? of questions and answers \(question\)", capsys.readouterr().err)


def test_a_row_of_no_known_format_is_told_with_the_line_that_maps_it(prepared: Any) -> None:
    source = prepared.lines({"prompt": "Hi"}, {"body_text": "Some words", "id": 5})
    with pytest.raises(UserError) as caught:
        prepared.do(source)
    line = str(caught.value).replace(f"{prepared.folder}/", "")
    assert line.startswith(
        "a.jsonl:2: no prompt is found in it (it has: body_text (text), id (number)); understood are"
    )
    mapped = re.search(r"prepare\.sources=(\[\{.*?\}\])", str(caught.value))
    assert mapped
    source = {**source, "limit": 2, "prompt": "body_text"}
    assert mapped[1] == f"[{{path: {source['path']}, prompt: body_text}}]"


def test_check_says_what_the_first_row_of_each_source_is_taken_for(prepared: Any) -> None:
    (prepared.folder / "ask.jinja").write_text("{{ a }} or {{ b }}?")
    chats = prepared.lines({"conversations": said(USER, ANSWER)}, {"prompt": "Hi"})
    other = prepared.lines({"body_text": "Hi"}, name="b.jsonl")
    asked = prepared.lines({"a": "x", "b": "y"}, name="c.jsonl") | {"template": str(prepared.folder / "ask.jinja")}
    empty, hub = prepared.file("d.txt", "\n"), {"dataset": "org/set"}
    config = prepared.config(chats, other, asked, empty, hub, bad_rows="skip")
    told = [line.replace(f"{prepared.folder}/", "") for line in previews(config)]
    assert told[0] == "a.jsonl:1: 1 row of ShareGPT (conversations)"
    assert told[1].startswith("b.jsonl:1: no prompt is found in it")
    assert told[2:] == [
        "ask.jinja: the columns that it uses: a, b",
        "c.jsonl:1: 1 row by the source's template (ask.jinja)",
        "d.txt: there is no row in it",
    ]
    with pytest.raises(UserError, match=r"b\.jsonl:1: no prompt is found in it .*\(prepare\.bad_rows=skip leaves"):
        list(previews(prepared.config(other)))

"""Rows from files and datasets with their places, and the messages that a row means."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Source
from pipeline.corpora import BadRowError, read
from pipeline.errors import UserError
from pipeline.prepare.sources import category_of, columns_of, first_turn, load_template, pairs_of, prompt_of, tools_of

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be brief."}
Row = dict[str, Any]


def meaning(row: Row, template: str | None = None, **source: Any) -> list[dict[str, str]]:
    return prompt_of(row, Source(path="a.jsonl", template=template, **source), load_template(template))


def write(path: Path, content: str | bytes) -> Source:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Source(path=str(path))


def places(source: Source) -> list[str]:
    """The line or row of each place, which begins with the file's path."""
    return [place.removeprefix(f"{source.path}:") for place, _ in read(source)]


# --- what a row means


@pytest.mark.parametrize(
    ("row", "source", "messages"),
    [
        ({"prompt": "Hi"}, {}, [USER]),
        ({"question": "Hi"}, {"prompt": "question"}, [USER]),
        ({"messages": [SYSTEM, USER]}, {}, [SYSTEM, USER]),
        ({"chat": [USER]}, {"messages": "chat"}, [USER]),
        ({"messages": None, "prompt": "Hi"}, {}, [USER]),
        ({"messages": [USER], "prompt": "not this"}, {}, [USER]),
        ({"messages": json.dumps([SYSTEM, USER])}, {}, [SYSTEM, USER]),
        ({"messages": [{**USER, "name": "Ann", "weight": 1}]}, {}, [USER]),
        ({"messages": [USER, ANSWER, USER]}, {}, [USER, ANSWER, USER]),
    ],
)
def test_the_conversation_of_a_row(row: Row, source: Row, messages: list[Row]) -> None:
    assert meaning(row, **source) == messages


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({}, "uncategorised"),
        ({"category": None}, "uncategorised"),
        ({"category": ""}, "uncategorised"),
        ({"category": 0}, "0"),
        ({"category": ["maths", None, "easy"]}, "maths, easy"),
        ({"category": {"of": None}}, '{"of": null}'),
        ({"category": "half \ud83d"}, "half ?"),
    ],
)
def test_the_label_of_a_row(row: Row, label: str) -> None:
    assert category_of(row, Source(path="a.jsonl")) == label


@pytest.mark.parametrize("answers", [1, 2])
def test_answers_that_a_corpus_has_at_the_end_are_left_to_the_teacher(answers: int) -> None:
    assert meaning({"messages": [USER, ANSWER, USER, *[ANSWER] * answers]}) == [USER, ANSWER, USER]


def test_a_system_message_is_put_before_a_prompt_that_has_none() -> None:
    assert meaning({"prompt": "Hi"}, system="Be brief.") == [SYSTEM, USER]
    assert meaning({"messages": [SYSTEM, USER]}, system="Another.") == [SYSTEM, USER]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"text": "Hi", "id": 3},
            r"no prompt is found in it \(it has: text \(text\), id \(number\)\); understood are messages, .*"
            r" prepare\.sources=\[\{path: a\.jsonl, prompt: text\}\]; or write a `template`",
        ),
        ({"note": "Hello there", "prompts": "Hi"}, r"\{path: a\.jsonl, prompt: prompts\}"),
        ({"the text": "Hi"}, r'\{path: a\.jsonl, prompt: "the text"\}'),
        ({"id": 3, "tags": ["x"], "of": None}, r"id \(number\), tags \(list\), of \(null\).* prompt: COLUMN\}"),
        ({}, "no prompt is found in it"),
        ({"prompt": ""}, "empty prompt: there is nothing in column 'prompt'"),
        ({"prompt": " \n\t"}, "empty prompt"),
        ({"prompt": None}, "empty prompt"),
        ({"messages": []}, "is not a list"),
        ({"messages": {"role": "user"}}, "is not a list"),
        ({"messages": [{**ANSWER, "content": ""}, USER]}, "the conversation begins with an empty answer"),
        ({"messages": "Hi"}, "column 'messages' is not a JSON list of messages"),
        ({"messages": ["Hi", 5]}, "is not a list of {role, content}"),
        (
            {"messages": [{"role": "narrator", "content": "Hi"}]},
            r"role must be one of system, .* and one is 'narrator'",
        ),
        ({"messages": [{"role": ["user"], "content": "Hi"}]}, "role must be one of system, .* and one has none"),
        ({"messages": [{"role": "user"}]}, "empty prompt"),
        ({"prompt": 5}, r"a user message's content is not text \(its type: int\)"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "a user message holds a text part without"),
        ({"messages": [{"role": "user", "content": {"text": "Hi"}}]}, r"content is not text \(its type: dict\)"),
        ({"messages": [SYSTEM]}, "no user message to answer"),
        ({"messages": [ANSWER]}, "no user message to answer"),
        ({"messages": [USER, SYSTEM]}, "no user message to answer"),
    ],
)
def test_a_row_that_gives_no_prompt_is_told_why(row: Row, said: str) -> None:
    with pytest.raises(BadRowError, match=said):
        meaning(row)


# --- answers to be scored


def pairs(row: Row, template: str | None = None, **source: Any) -> list[tuple[list[Row], Row]]:
    return pairs_of(row, Source(path="a.jsonl", template=template, **source), load_template(template))


@pytest.mark.parametrize(
    ("row", "source", "wanted"),
    [
        ({"prompt": "Hi", "completion": "Hello."}, {}, [([USER], ANSWER)]),
        ({"question": "Hi", "reply": "Hello."}, {"prompt": "question", "completion": "reply"}, [([USER], ANSWER)]),
        ({"prompt": "Hi", "completion": "Hello."}, {"system": "Be brief."}, [([SYSTEM, USER], ANSWER)]),
        ({"messages": [USER, ANSWER], "completion": "not this"}, {}, [([USER], ANSWER)]),
        ({"messages": json.dumps([USER, ANSWER])}, {}, [([USER], ANSWER)]),
        (
            {"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]},
            {},
            [([SYSTEM, USER], ANSWER), ([SYSTEM, USER, ANSWER, USER], ANSWER)],
        ),
        ({"messages": [USER, ANSWER, USER]}, {}, [([USER], ANSWER)]),
        ({"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}, {}, [([USER, ANSWER, USER], ANSWER)]),
        ({"messages": [USER, {**ANSWER, "train": False}, USER, ANSWER]}, {}, [([USER, ANSWER, USER], ANSWER)]),
        ({"messages": [USER, {**ANSWER, "weight": 1, "train": True}]}, {}, [([USER], ANSWER)]),
        ({"messages": [USER, {**ANSWER, "weight": None, "train": None}]}, {}, [([USER], ANSWER)]),
        ({"messages": [ANSWER, USER, ANSWER]}, {}, [([ANSWER, USER], ANSWER)]),
    ],
)
def test_each_answer_of_a_row_with_all_that_stands_before_it(row: Row, source: Row, wanted: list[Any]) -> None:
    assert pairs(row, **source) == wanted


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi"}, "no answer to be scored: there is nothing in any of the columns completion, response, "),
        (
            {"prompt": "Hi", "completions": "Hello."},
            r"\(the row has: prompt \(text\), completions \(text\)\); did you mean completions\?$",
        ),
        ({"prompt": "Hi", "completion": None}, "no answer to be scored: there is nothing in"),
        ({"prompt": "Hi", "completion": " "}, "no answer to be scored: there is nothing in"),
        ({"messages": [USER, {**ANSWER, "content": " "}]}, "no answer to be scored: its answer is empty"),
        ({"prompt": "Hi", "completion": 5}, r"assistant message's content is not text \(its type: int\)"),
        ({"messages": [USER]}, "no answer to be scored: no assistant message"),
        ({"messages": [ANSWER, USER]}, "no answer to be scored"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "none that is not masked"),
    ],
)
def test_a_row_without_an_answer_to_be_scored_is_told_why(row: Row, said: str) -> None:
    with pytest.raises(BadRowError, match=said):
        pairs(row)


def test_a_completion_may_answer_a_template(template: Callable[[str], str]) -> None:
    row = {"text": "Hi", "completion": "Hello.", "messages": [USER, ANSWER]}
    assert pairs(row, template("{{ text }}")) == [([USER], ANSWER)]


def test_the_first_turn_ends_with_the_first_user_message() -> None:
    assert first_turn([SYSTEM, USER, ANSWER, USER]) == [SYSTEM, USER]
    assert first_turn([ANSWER, USER]) == [ANSWER, USER]
    assert first_turn([SYSTEM]) == [SYSTEM]


# --- tools

FUNCTION = {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}
CALL = {"id": "c1", "type": "function", "function": FUNCTION}
AS_OPENAI = {**CALL, "function": {**FUNCTION, "arguments": json.dumps(FUNCTION["arguments"])}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("calls", [[AS_OPENAI], [CALL], json.dumps([AS_OPENAI])], ids=["text", "object", "a JSON cell"])
def test_tool_calls_come_as_objects(calls: Any) -> None:
    messages = [USER, {"role": "assistant", "tool_calls": calls}, RESULT]
    assert meaning({"messages": messages}) == [USER, CALLING, RESULT]
    assert pairs({"messages": messages}) == [([USER], CALLING)]


def test_a_call_without_an_envelope_stays_so() -> None:
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [FUNCTION]}, RESULT]
    assert meaning({"messages": messages})[1]["tool_calls"] == [FUNCTION]


def test_only_fields_that_are_set_and_of_the_role_are_kept() -> None:
    unset = dict.fromkeys(("tool_calls", "tool_call_id", "name", "reasoning_content"))
    messages = [{**unset, **USER, "name": "Ann"}, {**unset, **ANSWER, "reasoning_content": "hm"}, {**unset, **RESULT}]
    assert meaning({"messages": messages}) == [USER, {**ANSWER, "reasoning_content": "hm"}, RESULT]


@pytest.mark.parametrize("words", [{}, {"content": None}, {"content": ""}], ids=["left out", "null", "empty"])
def test_the_content_of_a_call_without_words_is_null(words: Row) -> None:
    calling = {"role": "assistant", "tool_calls": [CALL], **words}
    assert meaning({"messages": [USER, calling, RESULT]})[1] == CALLING


def test_what_json_has_not_is_text_in_calls_and_tools() -> None:
    day, call = datetime.date(2026, 1, 2), {"name": "f", "arguments": {"day": datetime.date(2026, 1, 2), "n": None}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}, RESULT]
    assert meaning({"messages": messages})[1]["tool_calls"] == [{"name": "f", "arguments": {"day": "2026-01-02"}}]
    assert tools_of({"tools": [{"since": day}]}, Source(path="a.jsonl")) == [{"since": "2026-01-02"}]


def test_a_tool_may_give_nothing_back() -> None:
    assert meaning({"messages": [USER, CALLING, {"role": "tool", "content": ""}]})[-1]["content"] == ""


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "tool"}, "a tool message has no text"),
        ({**CALLING, "tool_calls": "weather()"}, "tool_calls is not JSON"),
        ({**CALLING, "tool_calls": [5]}, "tool_calls is not a list of calls"),
        ({**CALLING, "tool_calls": {"name": "weather"}}, "tool_calls is not a list of calls"),
        ({**CALLING, "tool_calls": [{"function": {"arguments": "{}"}}]}, "needs function.name"),
        ({**CALLING, "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "arguments that is a JSON object"),
        ({**CALLING, "tool_calls": [{"name": "f", "arguments": "city=Oslo"}]}, "arguments of a tool call is not JSON"),
        ({**CALLING, "tool_calls": [{"name": "f\ud83d"}]}, "not valid Unicode"),
        ({**ANSWER, "reasoning_content": "\ud83d"}, "not valid Unicode"),
        ({**CALLING, "tool_calls": '[{"name": "f\\ud83d"}]'}, "not valid Unicode"),
        ({**CALLING, "tool_calls": [{"name": "f", "arguments": '{"a": "\\ud83d"}'}]}, "not valid Unicode"),
        ({**CALLING, "tool_calls": [{"function": "f"}]}, "a tool call's function is not an object"),
        ({**CALLING, "tool_calls": [{"name": "f", "arguments": {"a": b"\xff"}}]}, "hold binary data"),
        ({**ANSWER, "reasoning_content": ["hm"]}, r"an assistant message's reasoning_content is not text \(.*: list\)"),
        ({**RESULT, "tool_call_id": 5}, r"a tool message's tool_call_id is not text \(its type: int\)"),
    ],
)
def test_a_malformed_call_is_a_bad_row(message: Row, said: str) -> None:
    with pytest.raises(BadRowError, match=said):
        meaning({"messages": [USER, message, USER]})


@pytest.mark.parametrize(
    ("value", "tools"),
    [
        (None, None),
        ([], None),
        ("", None),
        ([TOOL], [TOOL]),
        (json.dumps([TOOL]), [TOOL]),
        ([{**TOOL, "strict": None}], [TOOL]),
    ],
)
def test_the_tools_of_a_row(value: Any, tools: Any) -> None:
    assert tools_of({"tools": value}, Source(path="a.jsonl")) == tools
    assert tools_of({"functions": value}, Source(path="a.jsonl", tools="functions")) == tools
    assert tools_of({}, Source(path="a.jsonl")) is None


@pytest.mark.parametrize("value", ["weather", {"name": "weather"}, ["weather"], 5])
def test_tools_that_are_no_list_of_tools_are_a_bad_row(value: Any) -> None:
    with pytest.raises(BadRowError, match="column 'tools' is no"):
        tools_of({"tools": value}, Source(path="a.jsonl"))


# --- templates


@pytest.fixture
def template(tmp_path: Path) -> Callable[[str | bytes], str]:
    def make(text: str | bytes) -> str:
        return str(write(tmp_path / "ask.jinja", text).path)

    return make


def test_a_template_makes_the_user_message_of_a_rows_columns(template: Callable[[str], str]) -> None:
    path = template("Translate to {{ to | upper }}: {{ text }}{% if note %} ({{ note }}){% endif %}")
    row = {"to": "fr", "text": "cat", "note": "", "messages": [USER]}
    assert meaning(row, path, system="Be brief.") == [SYSTEM, {"role": "user", "content": "Translate to FR: cat"}]


def test_a_column_that_the_template_wants_and_the_row_lacks_is_named(template: Callable[[str], str]) -> None:
    said = r"can't be filled: 'txt' is undefined; its variables are the row's columns: text, id; did you mean text\?$"
    with pytest.raises(BadRowError, match=said):
        meaning({"text": "cat", "id": 1}, template("{{ txt }}"))
    with pytest.raises(BadRowError, match=said):
        meaning({"text": "cat", "id": 1}, template("{{ row.txt }}"))


@pytest.mark.parametrize("null", [None, float("nan")])
def test_a_null_column_is_written_as_nothing(template: Callable[[str], str], null: Any) -> None:
    path = template("{{ ask }}\n{{ context }}{{ note | upper }}{{ row.note }}")
    [message] = meaning({"ask": "Why?", "context": null, "note": null}, path)
    assert message["content"] == "Why?\n"


def test_a_template_reaches_columns_whose_name_is_no_variable(template: Callable[[str], str]) -> None:
    assert meaning({"the text": "Hi"}, template("{{ row['the text'] }}")) == [USER]
    assert meaning({"row": "Hi"}, template("{{ row }}")) == [USER]


def test_the_columns_that_a_source_is_read_for(template: Callable[[str], str]) -> None:
    source = Source(path="a.jsonl", prompt="ask", category="topic")
    own = {"messages", "ask", "tools", "topic", "licence", "license"}
    assert columns_of(source, None, is_scored=False) == own
    assert columns_of(source, None, is_scored=True) == {*own, "completion"}
    ask, whole = load_template(template("{{ text }}{{ note.of }}")), load_template(template("{{ row.text }}"))
    assert columns_of(source, ask, is_scored=False) == {*own, "text", "note"}
    assert columns_of(source, whole, is_scored=False) is None


@pytest.mark.parametrize("text", ["{{ number + 'x' }}", "{{ 1 / number }}", "{{ number() }}"])
def test_a_template_that_fails_on_a_rows_values_is_a_bad_row(template: Callable[[str], str], text: str) -> None:
    with pytest.raises(BadRowError, match="can't be filled"):
        meaning({"number": 0}, template(text))


def test_a_row_may_have_a_column_of_any_name_beside_a_template(template: Callable[[str], str]) -> None:
    assert meaning({"text": "Hi", "self": 1, "two words": 2}, template("{{ text }}")) == [USER]


def test_a_template_that_renders_to_nothing_is_an_empty_prompt(template: Callable[[str], str]) -> None:
    with pytest.raises(BadRowError, match="empty prompt"):
        meaning({"text": ""}, template("{{ text }}\n"))


def test_a_template_cannot_reach_into_python(template: Callable[[str], str]) -> None:
    with pytest.raises(BadRowError, match="unsafe"):
        meaning({"text": "Hi"}, template("{{ text.__class__.__mro__ }}"))


@pytest.mark.parametrize("text", ["{{ a ", "{% for %}", "{% if a %}", b"\xff{{ a }}"])
def test_a_malformed_template_is_named(template: Callable[[str | bytes], str], text: str | bytes) -> None:
    with pytest.raises(UserError, match=r"ask\.jinja: ") as caught:
        load_template(template(text))
    assert "\n" not in str(caught.value)


def test_a_missing_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jinja: no such prompt template"):
        load_template(str(tmp_path / "none.jinja"))


# --- files


def parquet(rows: list[Row]) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
        return Source(path=str(folder / "a.parquet"))

    return make


def text_file(name: str, content: str) -> Callable[[Path], Source]:
    return lambda folder: write(folder / name, content)


KINDS = {
    "jsonl": text_file("a.jsonl", '{"prompt": "Hi"}\n{"prompt": "Two\\nlines"}\n'),
    "csv": text_file("a.csv", 'prompt\nHi\n"Two\nlines"\n'),
    "parquet": parquet([{"prompt": "Hi"}, {"prompt": "Two\nlines"}]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path)
    assert [row for _, row in read(source)] == [{"prompt": "Hi"}, {"prompt": "Two\nlines"}]


def test_every_line_of_a_text_file_is_a_prompt(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "Hi\n\n  Wie geht’s?  \nlast")
    assert [row for _, row in read(source)] == [{"prompt": "Hi"}, {"prompt": "Wie geht’s?"}, {"prompt": "last"}]
    assert places(source) == ["1", "3", "4"]


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    assert places(write(tmp_path / "a.jsonl", '\n{"prompt": "Hi"}\n\n{"prompt": "Ho"}')) == ["2", "4"]
    assert places(write(tmp_path / "a.csv", "prompt\nHi\nHo\n")) == ["2", "3"]
    assert places(parquet([{"prompt": "Hi"}, {"prompt": "Ho"}])(tmp_path)) == ["1", "2"]


def test_messages_come_out_of_parquet_as_plain_lists(tmp_path: Path) -> None:
    source = parquet([{"messages": [SYSTEM, USER], "category": "x"}])(tmp_path)
    [(_, row)] = read(source)
    assert not isinstance(row, BadRowError)
    assert prompt_of(row, source, None) == [SYSTEM, USER]


def test_messages_come_out_of_a_csv_cell_as_json(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", 'messages,category\n"[{""role"": ""user"", ""content"": ""Hi""}]",x\n')
    [(_, row)] = read(source)
    assert not isinstance(row, BadRowError)
    assert prompt_of(row, source, None) == [USER]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_byte_order_mark_is_no_part_of_the_text(name: str, tmp_path: Path) -> None:
    text = {"a.jsonl": '{"prompt": "Hi"}', "a.csv": "prompt\nHi", "a.txt": "Hi"}[name]
    source = write(tmp_path / name, b"\xef\xbb\xbf" + text.encode())
    assert [row for _, row in read(source)] == [{"prompt": "Hi"}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_reads_no_more_rows(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path)
    assert len(list(read(source.model_copy(update={"limit": 1})))) == 1
    assert len(list(read(source.model_copy(update={"limit": 3})))) == 2


@pytest.mark.parametrize(
    "line",
    [b'{"prompt": "Hi', b"Hi", b'{"prompt": "\xff"}', b"[1, 2]", b'"Hi"', b"[" * 100_000],
    ids=["cut", "plain text", "not UTF-8", "a list", "a string", "nested beyond measure"],
)
def test_a_malformed_line_is_a_bad_row_and_the_next_ones_are_read(line: bytes, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", b'{"prompt": "Hi"}\n' + line + b'\n{"prompt": "Ho"}\n')
    rows = list(read(source))
    assert [isinstance(row, BadRowError) for _, row in rows] == [False, True, False]
    assert rows[1][0] == f"{source.path}:2"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b'prompt\nHi\n"a"b\n', r"a\.csv:2: malformed CSV|a\.csv:3: malformed CSV"),
        ("a.csv", b"prompt\n\xff\n", r"a\.csv:\d+: malformed CSV"),
        ("a.txt", b"Hi\n\xff\n", r"a\.txt: not UTF-8"),
        ("a.parquet", b"", r"a\.parquet: not a readable Parquet file"),
        ("a.parquet", b"prompt\nHi\n" * 10, r"a\.parquet: not a readable Parquet file"),
        (
            "a.md",
            b"Hi\n",
            r"a\.md: rows are read from \.jsonl, \.ndjson, .* files, .* packed as \.gz, .* and \.arrow files",
        ),
        ("a.parquet.gz", b"Hi\n", r"a\.parquet\.gz: rows are read from \.jsonl"),
        ("prompts", b"Hi\n", r"prompts: rows are read from \.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        list(read(write(tmp_path / name, content)))


def test_a_parquet_file_with_damaged_pages_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": [f"prompt {i}" for i in range(500)]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[40:400] = b"\xff" * 360
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file") as caught:
        list(read(write(path, bytes(data))))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        list(read(Source(path=str(tmp_path / "none.jsonl"))))


def test_a_csv_row_with_too_few_cells_is_no_prompt(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", "category,prompt\nx\n")
    [(_, row)] = read(source)
    assert not isinstance(row, BadRowError)
    with pytest.raises(BadRowError, match="empty prompt"):
        prompt_of(row, source, None)


# --- datasets


@pytest.fixture
def dataset(tmp_path: Path) -> Source:
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"messages": [USER], "category": "x"}, {"messages": [SYSTEM, USER], "category": "y"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text(json.dumps(rows[0]) + "\n")
    return Source(dataset=str(folder))


def test_a_local_dataset_folder_gives_rows_with_their_places(dataset: Source) -> None:
    rows = list(read(dataset))
    assert [place for place, _ in rows] == [f"{dataset.dataset}:0", f"{dataset.dataset}:1"]
    assert [prompt_of(row, dataset, None) for _, row in rows if not isinstance(row, BadRowError)] == [
        [USER],
        [SYSTEM, USER],
    ]


def test_the_split_and_limit_of_a_dataset(dataset: Source) -> None:
    assert len(list(read(dataset.model_copy(update={"dataset_split": "test"})))) == 1
    assert len(list(read(dataset.model_copy(update={"limit": 1})))) == 1


def test_a_split_that_a_dataset_lacks_is_named(dataset: Source) -> None:
    with pytest.raises(UserError, match=r"dataset .*corpus: can't be read .*validation"):
        list(read(dataset.model_copy(update={"dataset_split": "validation"})))


def test_a_dataset_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset .*none: can't be read") as caught:
        list(read(Source(dataset=str(tmp_path / "none"))))
    assert "\n" not in str(caught.value)

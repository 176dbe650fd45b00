"""Rows of files: what a cell may hold, how a file may be written, and what of it is read. See also test_sources.py."""

import csv
import datetime
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import Source
from pipeline.corpora import MAX_DEPTH, BadRowError, read
from pipeline.errors import UserError
from pipeline.prepare import conversations, formats, messages, sources
from pipeline.prepare.conversations import Asked
from pipeline.records import PROMPTS

HUGE = "7" * 5000  # digits: more than Python turns into a number
FAR_FUTURE = pa.array([1, 10**18], pa.timestamp("us"))  # the second is in the year 33658


def rows(path: Path, *columns: str) -> list[Any]:
    return [row for _, row in read(Source(path=str(path)), set(columns) or None)]


def only(path: Path, *columns: str) -> Any:
    [row] = rows(path, *columns)
    return row


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- what a cell may hold


@pytest.mark.parametrize("number", [HUGE, f"-{HUGE}", "1e400", "-Infinity"], ids=["long", "minus", "large", "infinite"])
def test_a_number_that_python_lacks_is_the_text_that_stands_there(number: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"prompt": "Hi", "id": {number}}}\n')
    assert only(path) == {"prompt": "Hi", "id": number}


def test_a_date_that_python_lacks_is_no_fault_of_a_row_that_is_read_without_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a", "b"], "time": FAR_FUTURE}), tmp_path / "a.parquet")
    assert [row["prompt"] for row in rows(tmp_path / "a.parquet", "prompt")] == ["a", "b"]
    first, second = rows(tmp_path / "a.parquet", "prompt", "time")
    assert first["time"] == datetime.datetime(1970, 1, 1, 0, 0, 0, 1)
    assert isinstance(second, BadRowError)
    assert re.fullmatch(r"column 'time' can't be read: timestamp\[us\]: .*out of range", str(second))


def test_a_dataset_folder_is_read_without_the_columns_that_nobody_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    pq.write_table(pa.table({"prompt": ["a", "b"], "time": FAR_FUTURE}), folder / "train.parquet")
    found = [row for _, row in read(Source(dataset=str(folder)), {"prompt"})]
    assert [row["prompt"] for row in found if isinstance(row, dict)] == ["a", "b"]
    assert [set(row) for row in found if isinstance(row, dict)] == [{"prompt", "time"}] * 2
    bad = [place for place, row in read(Source(dataset=str(folder))) if isinstance(row, BadRowError)]
    assert bad == [f"{folder}:1"]


def test_a_csv_cell_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    text = "x" * 200_000
    assert only(write(tmp_path / "a.csv", f"prompt\n{text}\n")) == {"prompt": text}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"a": NaN, "b": [1.5, NaN], "c": {"d": NaN}}'),
        ("a.csv", "a,b,c\nnan,NaN,-nan\n"),
    ],
)
def test_a_number_that_is_none_is_null(name: str, content: str, tmp_path: Path) -> None:
    assert not re.search("nan", str(only(write(tmp_path / name, content))), re.IGNORECASE)


def test_a_number_that_is_none_is_null_in_parquet_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [float("nan")], "b": [[float("nan")]]}), tmp_path / "a.parquet")
    assert only(tmp_path / "a.parquet") == {"a": None, "b": [None]}


def test_values_of_arrow_are_pythons(tmp_path: Path) -> None:
    table = pa.table(
        {
            "binary": pa.array([b"text"], pa.binary()),
            "large": pa.array(["text"], pa.large_string()),
            "coded": pa.array(["text"]).dictionary_encode(),
            "decimal": pa.array([Decimal("1.50")]),
            "lasts": pa.array([90], pa.duration("s")),
            "map": pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert only(tmp_path / "a.parquet") == {
        **dict.fromkeys(("binary", "large", "coded"), "text"),
        "decimal": Decimal("1.50"),
        "lasts": datetime.timedelta(seconds=90),
        "map": {"k": "v"},
    }


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1])
def test_a_value_may_be_nested_so_deep_and_no_deeper(depth: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"prompt": {"[" * depth}{"]" * depth}}}\n')
    assert isinstance(only(path), BadRowError) == (depth > MAX_DEPTH)
    assert isinstance(only(path, "other"), dict)


# --- how a file may be written


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"prompt": "Ça va 🙂"}\n'), ("a.csv", "prompt\nÇa va 🙂\n"), ("a.txt", "Ça va 🙂\n")],
)
def test_a_byte_order_mark_tells_the_encoding(name: str, content: str, encoding: str, tmp_path: Path) -> None:
    assert only(write(tmp_path / name, content.encode(encoding))) == {"prompt": "Ça va 🙂"}


def test_lines_of_json_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"prompt": "a\u2028b\u0085c"}\r\n\r\n{"prompt": "d"}')
    assert rows(path) == [{"prompt": "a\u2028b\u0085c"}, {"prompt": "d"}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_tells_what_parts_the_cells_of_a_csv(delimiter: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f'prompt{delimiter}x\n"a, b; c"{delimiter}1\n')
    assert only(path) == {"prompt": "a, b; c", "x": "1"}


def test_a_header_of_one_column_may_hold_no_delimiter(tmp_path: Path) -> None:
    assert only(write(tmp_path / "a.csv", '\nprompt\n"Hi; you"\n')) == {"prompt": "Hi; you"}


def test_a_csv_row_with_a_comma_outside_quotes_is_not_cut_in_silence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "prompt\nHello, world\nHi,\n")
    bad, good = rows(path)
    assert "it has 2 cells, but the header names 1 columns" in str(bad)
    assert good == {"prompt": "Hi"}  # what is more is empty


def test_the_place_of_a_csv_row_is_its_first_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'prompt\n"a\nb"\nc\n')
    assert [place for place, _ in read(Source(path=str(path)))] == [f"{path}:2", f"{path}:4"]


def test_a_quote_that_is_never_closed_is_told_with_the_line_where_it_opens(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'prompt\na\n"b\nc\nd\n')
    with pytest.raises(UserError, match=r"a\.csv:3: malformed CSV \(unexpected end of data; the row begins in this"):
        rows(path)


def test_the_line_of_a_csv_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.csv:3: malformed CSV \(.*0xff"):
        rows(write(tmp_path / "a.csv", b"prompt\na\n\xff\n"))
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8 text \(line 2: .*0xff"):
        rows(write(tmp_path / "a.txt", b"a\n\xff\n"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_two_columns_of_one_name_are_refused_if_they_are_wanted(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        write(path, "prompt,note,note\na,b,c\n")
    else:
        pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["prompt", "note", "note"]), path)
    with pytest.raises(UserError, match=r"two columns are called 'note'"):
        rows(path, "prompt", "note")
    assert only(path, "prompt")["prompt"] == "a"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
@pytest.mark.parametrize("content", ["", "\n\n", "\r\n"])
def test_a_file_without_rows_has_none(name: str, content: str, tmp_path: Path) -> None:
    assert rows(write(tmp_path / name, content)) == []


def test_a_csv_with_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.csv", "prompt\n")) == []


def test_a_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    assert only(write(tmp_path / "A.CSV", "prompt\nHi\n")) == {"prompt": "Hi"}


# --- whatever a cell holds: a prompt, or one line that says why not

TEXTS = st.text(st.characters(exclude_characters="Nn"), max_size=8) | st.sampled_from(
    ["", " ", "\0", "\u2028", "\ud800"]
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.just(int("7" * 4000)) | st.floats() | TEXTS | st.just("[" * 2000)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
FIELDS = ("content", "tool_calls", "tool_call_id", "name", "reasoning_content", "weight", "train")
CALLS = st.lists(
    st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXTS, "arguments": VALUES})}), max_size=2
)
USER = st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS.filter(str.strip)})
OTHERS = st.fixed_dictionaries(
    {"role": st.sampled_from(messages.ROLES)},
    optional={
        "content": TEXTS | VALUES,
        "tool_calls": CALLS | CALLS.map(json.dumps) | VALUES,
        **dict.fromkeys(("tool_call_id", "name", "reasoning_content"), TEXTS | SCALARS),
        **dict.fromkeys(("weight", "train"), SCALARS),
    },
)
ROLES = st.sampled_from([*messages.ROLES, *messages.NAMES, "narrator"])
SHAREGPT = st.lists(st.fixed_dictionaries({"from": ROLES, "value": TEXTS | VALUES}))
PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]) | VALUES, "text": TEXTS | VALUES})
PARTS = st.fixed_dictionaries({"role": ROLES, "content": st.lists(PART)})
MESSAGES = st.tuples(USER, OTHERS, USER).map(list) | st.tuples(USER, OTHERS).map(list) | st.lists(OTHERS)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "messages": MESSAGES | MESSAGES.map(json.dumps) | VALUES,
        **dict.fromkeys(("prompt", "completion", "tools", "category", "licence", "note", "extra"), VALUES),
    },
)
CHATS = MESSAGES | SHAREGPT | st.lists(PARTS) | st.lists(TEXTS) | SHAREGPT.map(json.dumps) | VALUES
FORMATS = st.dictionaries(
    st.sampled_from(sorted({*formats.columns(is_scored=True), "tools", "rejected"})),
    CHATS | TEXTS | st.fixed_dictionaries({"messages": CHATS, "tools": VALUES}),
    max_size=4,
)
NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
TEMPLATES = ("Say {{ note }}", "{{ row.note ~ row.extra }}{{ prompt | default('-') | trim }}", None)


def jsonl(path: Path, row: dict[str, Any]) -> None:
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")


def comma_separated(path: Path, row: dict[str, Any]) -> None:
    cells = [each if isinstance(each, str) else json.dumps(each) for each in row.values()]
    with path.open("w", encoding="utf-8", errors="replace", newline="") as stream:
        csv.writer(stream).writerows([row.keys(), cells])


def parquet(path: Path, row: dict[str, Any]) -> None:
    columns = {}
    for name, value in row.items():
        try:
            columns[name] = pa.array([value])
            pq.write_table(pa.table({name: columns[name]}), pa.BufferOutputStream())
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):  # mixed types, and what no file can hold
            columns[name] = pa.array([json.dumps(value)])
    pq.write_table(pa.table(columns), path)


WRITERS = {"a.jsonl": jsonl, "a.json": jsonl, "a.csv": comma_separated, "a.parquet": parquet}


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=80, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=ROWS | FORMATS | st.dictionaries(NAMES, VALUES, max_size=3), text=st.sampled_from(TEMPLATES))
def test_whatever_a_row_holds_it_is_prompts_or_one_line(
    name: str, row: dict[str, Any], text: str | None, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name == "a.parquet" and not row:
        return
    WRITERS[name](path, row)
    template = sources.load_template(str(write(tmp_path / "t.jinja", text))) if text else None
    source = Source(path=str(path))
    rows, refused = [], ""
    try:
        rows = list(read(source, sources.columns_of(source, template, is_scored=True)))
    except UserError as error:  # an object with two lists of objects: nobody can know which of them holds the rows
        refused = str(error)
    if refused:
        assert (name, refused.splitlines()) == ("a.json", [refused])
        assert re.fullmatch(rf"{re.escape(str(path))}: its lists .* may both hold the rows; .*", refused)
    for place, found in rows:
        assert re.fullmatch(rf"{re.escape(str(path))}:\d+", place)
        for make in (sources.prompt_of, sources.pairs_of):
            asked = as_asked(make, found, source, template)
            if isinstance(asked, BadRowError):
                assert "\n" not in str(asked)
                continue
            for each in asked:
                pa.Table.from_pylist([conversations.row(each, 0.1)], schema=PROMPTS)
                said = "".join(message["content"] or "" for message in each.messages)
                assert not re.search("None|nan", said)


def as_asked(make: Any, row: Any, source: Source, template: Any) -> list[Asked] | BadRowError:
    """What prepare makes of a row."""
    try:
        if isinstance(row, BadRowError):
            raise row
        made, tools = make(row, source, template), sources.tools_of(row, source)
    except BadRowError as problem:
        return problem
    pairs = made if make is sources.pairs_of else [(made, None)]
    label, licence = sources.category_of(row, source), sources.licence_of(row, source)
    return [Asked("a:1", label, messages, tools, completion, "a", licence) for messages, completion in pairs]

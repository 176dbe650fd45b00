"""The files, folders and datasets that rows come in, written by other tools."""

import bz2
import gzip
import json
import lzma
import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import EvaluationSet, Source
from pipeline.corpora import BadRowError, containers, files_of, json_rows, read
from pipeline.corpora.containers import files
from pipeline.errors import UserError

Rows = list[dict[str, Any]]
ROWS: Rows = [{"prompt": "Hi", "category": "ä"}, {"prompt": "Two\nlines 🙂", "category": 'a "b", c'}]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
NUM_MANY = 10_000
MANY_BYTES = 8 << 20  # less than half of the text of so many rows


def rows(source: Source | EvaluationSet) -> list[Any]:
    return [row for _, row in read(source)]


def at(path: Path | str, **settings: Any) -> Source:
    return Source(path=str(path), **settings)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- each container, as another tool writes it


def json_array(path: Path, given: Rows) -> None:
    pd.DataFrame(given).to_json(path, orient="records", force_ascii=False)


def json_pretty(path: Path, given: Rows) -> None:
    path.write_text("\n".join(json.dumps(row, indent=2) for row in given))


def json_in_an_object(path: Path, given: Rows) -> None:
    pd.DataFrame(given).to_json(path, orient="table", index=False)  # {"schema": {...}, "data": [...]}


def json_lines(path: Path, given: Rows) -> None:
    Dataset.from_list(given).to_json(path)


def comma_separated(path: Path, given: Rows) -> None:
    Dataset.from_list(given).to_csv(path, index=False)


def tab_separated(path: Path, given: Rows) -> None:
    pd.DataFrame(given).to_csv(path, sep="\t", index=False)


TEXTS = {
    "array.json": json_array,
    "pretty.json": json_pretty,
    "table.json": json_in_an_object,
    "lines.json": json_lines,
    "a.jsonl": json_lines,
    "a.ndjson": json_lines,
    "a.csv": comma_separated,
    "a.tsv": tab_separated,
}


def arrow_file(path: Path, given: Rows) -> None:
    table = pa.Table.from_pylist(given)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=len(given))


def arrow_stream(path: Path, given: Rows) -> None:
    Dataset.from_list(given).save_to_disk(path.parent / "saved")
    path.write_bytes((path.parent / "saved/data-00000-of-00001.arrow").read_bytes())


BINARY = {
    "a.parquet": lambda path, given: Dataset.from_list(given).to_parquet(path),
    "b.parquet": lambda path, given: pd.DataFrame(given).to_parquet(path),
    "file.arrow": arrow_file,
    "stream.arrow": arrow_stream,
}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("name", TEXTS)
def test_every_text_is_read_packed_or_not(name: str, packed: str, tmp_path: Path) -> None:
    TEXTS[name](tmp_path / name, ROWS)
    path = write(tmp_path / (name + packed), PACKERS[packed]((tmp_path / name).read_bytes()))
    assert rows(at(path)) == ROWS
    assert files(str(path)) == [path]
    assert all(place.startswith(f"{path}:") for place, _ in read(at(path), {"prompt"}))


@pytest.mark.parametrize("packed", PACKERS)
def test_lines_of_text_are_read_packed_or_not(packed: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.txt{packed}", PACKERS[packed](b"Hi\n\nHo\n"))
    assert list(read(at(path))) == [(f"{path}:1", {"prompt": "Hi"}), (f"{path}:3", {"prompt": "Ho"})]


@pytest.mark.parametrize("name", BINARY)
def test_every_binary_kind_is_read(name: str, tmp_path: Path) -> None:
    BINARY[name](tmp_path / name, ROWS)
    assert list(read(at(tmp_path / name))) == [(f"{tmp_path / name}:{n}", row) for n, row in enumerate(ROWS, 1)]
    [first, _] = [row for _, row in read(at(tmp_path / name), {"prompt"})]
    assert isinstance(first, dict)
    assert first["prompt"] == "Hi"
    assert first["category"] is containers.UNREAD


@pytest.mark.parametrize("name", ["A.JSONL.GZ", "a.Json", "a.TSV", "a.PARQUET"])
def test_a_suffix_may_be_in_capitals(name: str, tmp_path: Path) -> None:
    kind = {**TEXTS, **BINARY, "a.json": json_array}[name.lower().removesuffix(".gz")]
    kind(tmp_path / "plain", ROWS) if "GZ" in name else kind(tmp_path / name, ROWS)
    if "GZ" in name:
        write(tmp_path / name, gzip.compress((tmp_path / "plain").read_bytes()))
    assert rows(at(tmp_path / name)) == ROWS


def test_several_packed_parts_are_one_file(tmp_path: Path) -> None:
    for suffix, pack in PACKERS.items():
        path = write(tmp_path / f"a.txt{suffix}", pack(b"Hi\n") + pack(b"Ho\n"))
        assert rows(at(path)) == [{"prompt": "Hi"}, {"prompt": "Ho"}]


@pytest.mark.parametrize("packed", [suffix for suffix in PACKERS if suffix])
@pytest.mark.parametrize("is_cut", [True, False])
def test_a_damaged_packed_file_is_named(packed: str, is_cut: bool, tmp_path: Path) -> None:
    data = PACKERS[packed](random.Random(0).randbytes(5000).hex().encode())
    path = write(tmp_path / f"a.txt{packed}", data[: len(data) // 2] if is_cut else b"not packed at all\n")
    with pytest.raises(UserError, match=rf"a\.txt\{packed}: can't be read \(.+\)$"):
        rows(at(path))


# --- JSON


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", []),
        (" [ ] ", []),
        ('[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ('{"a": 1}{"a": 2}\n\n[{"a": 3}]', [{"a": 1}, {"a": 2}, {"a": 3}]),
        ('{"a": 1}', [{"a": 1}]),
        ('{"a": [1, 2], "b": {"c": 1}}', [{"a": [1, 2], "b": {"c": 1}}]),
        ('{"version": 2, "data": [{"a": 1}, {"a": 2}]}', [{"a": 1}, {"a": 2}]),
        ('{"messages": [{"role": "user"}]}', [{"messages": [{"role": "user"}]}]),
        ('{"conversations": [{"from": "human"}]}', [{"conversations": [{"from": "human"}]}]),
        ('{"prompt": "Hi", "tools": [{"name": "f"}]}', [{"prompt": "Hi", "tools": [{"name": "f"}]}]),
        ('{"data": [{"a": 1}]}\n{"a": 2}', [{"data": [{"a": 1}]}, {"a": 2}]),
    ],
)
@pytest.mark.parametrize("chunk", [1, 3, 1 << 18])
def test_the_rows_of_a_json_file(
    content: str, found: Rows, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    path = write(tmp_path / "a.json", content)
    assert list(read(at(path))) == [(f"{path}:{number}", row) for number, row in enumerate(found, 1)]


def test_what_is_no_object_is_a_bad_row(tmp_path: Path) -> None:
    found = rows(at(write(tmp_path / "a.json", '[1, "x", null, [2], {"a": 1}] 123')))
    assert [str(row) for row in found] == [
        "not a JSON object, but a number",
        "not a JSON object, but a text",
        "not a JSON object, but null",
        "not a JSON object, but a list",
        "{'a': 1}",
        "not a JSON object, but a number",
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('[{"a": 1},\n {"a": 2}', r"in line 2 \(expecting , or \]\)"),
        ('[{"a": 1}\n {"a": 2}]', r"in line 2 \(expecting , or \]\)"),
        ('[{"a": 1},\n {"a" 2}]', r"in line 2 \(Expecting ':' delimiter\)"),
        ('[{"a": 1},\n]', r"in line 2 \(Expecting value\)"),
        ('{"a": 1}\n\n{"a": "x', r"in line 3 \(Unterminated string"),
        ("Hello", r"in line 1 \(Expecting value\)"),
        ("[" * 100_000, r"in line 1 \(maximum recursion depth"),
        (b'[{"a": 1},\n{"a": "\xff"}]', r"in line 2 \(.*can't decode byte 0xff"),
    ],
)
@pytest.mark.parametrize("chunk", [2, 1 << 18])
def test_malformed_json_is_told_with_its_line(
    content: str | bytes, why: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    with pytest.raises(UserError, match=rf"a\.json: malformed JSON {why}") as caught:
        rows(at(write(tmp_path / "a.json", content)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("most", [4, 1 << 24])
def test_an_object_with_the_rows_is_read_whatever_its_length(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", 5)
    monkeypatch.setattr(json_rows, "MAX_WHOLE_CHARACTERS", most)
    whole = {"about": {"of": [{"x": 1}]}, "names": ["a", "b"], "none": [], "data": ROWS, "end": 5}
    path = write(tmp_path / "a.json", json.dumps(whole, indent=1))
    assert rows(at(path)) == ROWS
    write(path, json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    if most == 4:
        with pytest.raises(UserError, match="its first object is longer than 4 characters, and holds no list of rows"):
            rows(at(path))
    write(path, json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(UserError, match=r"a\.json: its lists 'train' and 'test' may both hold the rows"):
        rows(at(path))


# --- folders, patterns, datasets on disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a/c.jsonl.gz", "a/b.CSV"):
        text = "prompt\nin b.CSV\n" if name.endswith("CSV") else json.dumps({"prompt": f"in {name}"})
        write(tmp_path / "corpus" / name, gzip.compress(text.encode()) if name.endswith("gz") else text)
    for name in ("README.md", ".hidden.jsonl", ".git/x.jsonl", "dataset_infos.json", "picture.png"):
        write(tmp_path / "corpus" / name, "no row")
    return tmp_path / "corpus"


def test_a_folder_is_all_that_can_be_read_below_it(folder: Path) -> None:
    found = [row["prompt"] for row in rows(at(folder))]
    assert found == ["in b.CSV", "in a/c.jsonl.gz", "in b.jsonl"]
    assert files_of(at(folder)) == [folder / "a/b.CSV", folder / "a/c.jsonl.gz", folder / "b.jsonl"]
    assert len(rows(at(folder, limit=2))) == 2


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("*.jsonl", ["b.jsonl"]), ("*/*", ["a/b.CSV", "a/c.jsonl.gz"]), ("**/*.jsonl*", ["a/c.jsonl.gz", "b.jsonl"])],
)
def test_a_pattern_is_the_files_that_match(
    folder: Path, pattern: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files(f"{folder}/{pattern}") == [folder / name for name in names]
    monkeypatch.chdir(folder)
    assert files(pattern) == [Path(name) for name in names]


def test_a_pattern_may_name_what_is_hidden_or_above(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "a")
    assert files("../*.jsonl") == [Path("../b.jsonl")]
    assert files("../.git/*.jsonl") == [Path("../.git/x.jsonl")]


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].jsonl", '{"prompt": "Hi"}')
    write(tmp_path / "a1.jsonl", '{"prompt": "Ho"}')
    assert rows(at(path)) == [{"prompt": "Hi"}]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("empty", r"empty: no file of rows: there is no file; rows are read from \.jsonl"),
        ("other", r"other: no file of rows: there are a\.pdf, b\.docx; rows are read from"),
        ("other/*.pdf", r"no file of rows: there are a\.pdf; rows"),
        ("*.jsonl", r"no file of rows: there is no file; rows"),
        ("none", "none: no such file or folder; paths are from where you stand"),
    ],
)
def test_a_path_without_rows_is_told_with_what_is_there(path: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "other/a.pdf", "x")
    write(tmp_path / "other/b.docx", "x")
    with pytest.raises(UserError, match=why):
        rows(at(tmp_path / path))


@pytest.mark.parametrize("key", ["path", "dataset"])
def test_what_save_to_disk_wrote_is_read_by_its_split(key: str, tmp_path: Path) -> None:
    one = Dataset.from_list([{"prompt": f"{n}"} for n in range(20)])
    one.save_to_disk(tmp_path / "one")
    DatasetDict({"train": one, "test": one.select([3, 5])}).save_to_disk(tmp_path / "both")

    def prompts(name: str, **settings: Any) -> list[str]:
        source = Source.model_validate({key: str(tmp_path / name), **settings})
        return [row["prompt"] for row in rows(source)]

    assert prompts("one") == prompts("both") == [f"{n}" for n in range(20)]
    assert prompts("one", limit=2) == ["0", "1"]
    assert prompts("both", dataset_split="test") == ["3", "5"]
    assert prompts("both", dataset_split="train[:10%]") == prompts("one", dataset_split="train[:10%]") == ["0", "1"]
    assert prompts("both", dataset_split="test+train[18:]") == ["3", "5", "18", "19"]
    with pytest.raises(UserError, match=r"both: can't be read \(Unknown split \"valid\". Should be one of"):
        prompts("both", dataset_split="valid")
    source = Source.model_validate({key: str(tmp_path / "one"), "limit": 1})
    assert [place for place, _ in read(source)] == [f"{tmp_path}/one:0"]


def test_all_files_of_what_save_to_disk_wrote_belong_to_it(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert {path.name for path in files_of(at(tmp_path / "one"))} >= {"state.json", "dataset_info.json"}
    assert files_of(Source(dataset=str(tmp_path / "one"))) == []


def test_a_part_of_a_split_of_a_dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "corpus/train.jsonl", "".join(json.dumps({"prompt": f"{n}"}) + "\n" for n in range(10)))
    write(tmp_path / "corpus/other.jsonl", json.dumps({"prompt": "other"}))
    source = Source(dataset=str(tmp_path / "corpus"), dataset_split="train[20%:40%]", data_files=("train.jsonl",))
    assert [row["prompt"] for row in rows(source)] == ["2", "3"]


def test_revision_files_and_split_of_a_dataset_reach_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(name: str, subset: str | None, **settings: Any) -> Any:
        asked.append((name, subset, settings))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    whole = Source(dataset="org/set", subset="en", revision="v2", data_files=("a.csv", "b.csv"))
    assert rows(whole) == ROWS
    assert rows(EvaluationSet(dataset="org/set", dataset_split="test[:5%]")) == ROWS
    assert asked == [
        ("org/set", "en", {"split": "train", "streaming": True, "revision": "v2", "data_files": ["a.csv", "b.csv"]}),
        ("org/set", None, {"split": "test[:5%]", "streaming": False, "revision": None, "data_files": None}),
    ]


@pytest.mark.parametrize("setting", [{"revision": "main"}, {"data_files": ["a.csv"]}])
def test_what_only_a_dataset_has_is_refused_of_a_path(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="revision and data_files go with dataset, not with path"):
        Source(path="a.jsonl", **setting)


# --- many rows


@pytest.mark.parametrize("name", [*TEXTS, *BINARY, "a.txt"])
@pytest.mark.parametrize("packed", ["", ".zst"])
def test_many_rows_are_read_with_flat_memory(name: str, packed: str, tmp_path: Path) -> None:
    if packed and name in BINARY:
        return
    text = "x" * 2000
    if name == "a.txt":
        write(tmp_path / name, f"{text}\n" * NUM_MANY)
    else:
        {**TEXTS, **BINARY}[name](tmp_path / name, [{"prompt": text, "n": n} for n in range(NUM_MANY)])
    if packed:
        write(tmp_path / (name + packed), PACKERS[packed]((tmp_path / name).read_bytes()))
    tracemalloc.start()
    try:
        num = sum(row["prompt"] == text for _, row in read(at(tmp_path / (name + packed))) if isinstance(row, dict))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num == NUM_MANY
    assert peak_bytes < MANY_BYTES


# --- whatever a file holds

NAMES = st.sampled_from([name + packed for name in (*TEXTS, "a.txt") for packed in PACKERS] + list(BINARY))
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
CONTENTS = (
    st.binary(max_size=200)
    | st.text(max_size=100).map(lambda text: text.encode("utf-16"))
    | st.text('{}[]",:01e \n', max_size=60).map(str.encode)
    | JSONS.map(lambda value: json.dumps(value).encode())
    | st.lists(JSONS, max_size=4).map(lambda values: "\n".join(map(json.dumps, values)).encode())
)


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES, content=CONTENTS, is_packed=st.booleans())
def test_whatever_a_file_holds_it_is_rows_or_one_line(
    name: str, content: bytes, is_packed: bool, tmp_path: Path
) -> None:
    pack = next((pack for suffix, pack in PACKERS.items() if suffix and name.endswith(suffix)), bytes)
    path = write(tmp_path / name, pack(content) if is_packed else content)
    found, told = [], ""
    try:
        found.extend(read(at(path)))
    except UserError as error:
        told = str(error)
    assert str(path) in told or not told
    for place, row in found:
        assert re.fullmatch(rf"{re.escape(str(path))}:\d+", place)
        assert isinstance(row, dict | BadRowError)
    assert "\n" not in "".join([told, *(str(row) for _, row in found if isinstance(row, BadRowError))])


@settings(max_examples=100, deadline=None, database=None)
@given(values=st.lists(JSONS, max_size=5), indent=st.none() | st.integers(0, 2), chunk=st.integers(1, 40))
def test_a_json_array_gives_each_of_its_elements(values: list[Any], indent: int | None, chunk: int) -> None:
    import io

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK", chunk)
        text = json.dumps(values, indent=indent)
        found = list(json_rows.read(Path("a.json"), io.StringIO(text)))
    wanted = json_rows.parsed(text)
    assert [row if isinstance(row, dict) else None for row in found] == [
        value if isinstance(value, dict) else None for value in wanted
    ]

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.fabricated_run import PLANTED, make

from pipeline.errors import UserError
from pipeline.report import example


def lines_of(text: str, heading: str) -> list[str]:
    """The lines under a heading, up to the next empty one."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(heading))
    return lines[start : lines.index("", start) if "" in lines[start:] else None]


def test_without_an_id_the_first_kept_response_is_shown(tmp_path: Path, teacher_path: Path) -> None:
    text = example.describe(make(tmp_path, teacher=str(teacher_path)), None)
    assert "PROMPT prompt2\n  split train · category writing · prompts/seeds.jsonl:3\n  3 prompt tokens" in text
    assert "ANSWER prompt2-0\n  4 tokens · finish reason stop" in text
    assert "FILTER kept" in text


def test_tokens_have_pieces_logprobs_alternatives_and_tail(tmp_path: Path, teacher_path: Path) -> None:
    text = example.describe(make(tmp_path, teacher=str(teacher_path)), "prompt2-0")
    heading, _, first, *_ = lines_of(text, "FIRST")
    assert heading == "FIRST 4 OF 4 TOKENS, stored with up to 6 log-probs for each"
    # the mass stored is 45 + 20 + 10 + 8 + 5 + 2 %, of which the five best are shown
    alternatives = '"alpha" 44.3%  "<s>" 20.3%  "</s>" 10.0%  "beta" 8.2%  "gamma" 5.1%  tail 10.0%'
    assert re.fullmatch(rf'\s+0  "alpha"\s+-0\.799  {re.escape(alternatives)}', first)


def test_nothing_of_a_model_or_prompt_moves_the_cursor(tmp_path: Path, teacher_path: Path) -> None:
    text = example.describe(make(tmp_path, teacher=str(teacher_path)), "prompt2-0")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert r"Answer 2: \x1b[31mred\x07\u202e" in text
    assert rf"Say 2.\x1b[2J {PLANTED}" in text
    assert r'"bad\x1b[31mtoken"' in text


def test_tools_calls_and_reasoning_are_shown(tmp_path: Path) -> None:
    text = example.describe(make(tmp_path, until="generate"), "prompt3-0")
    for part in ('tools: [{"function"', '"name": "look"', "[tool]", "It is red.", "the first 2 are reasoning", "Red,"):
        assert part in text
    assert "\x1b" not in text


def test_escaping_keeps_what_people_write() -> None:
    assert example.escaped("naïve 你好 👩\u200d🚀 “quoted” [red]") == "naïve 你好 👩\u200d🚀 “quoted” [red]"
    assert example.escaped("a\tb\r\x9b\u2028\u2066") == r"a\tb\r\x9b\u2028\u2066"


def test_a_dropped_response_shows_reason_score_and_limit(tmp_path: Path) -> None:
    text = example.describe(make(tmp_path, until="filter"), "prompt1-0")
    decision = lines_of(text, "FILTER")
    assert decision[0] == "FILTER dropped: repeated ngrams"
    [row] = [line for line in decision if "←" in line]
    words = ["repeated", "ngrams", "0.61", "share", "max_duplicate_ngram_frac", "=", "0.35", "←", "dropped"]
    assert row.split() == words


def test_a_prompt_id_shows_its_response(tmp_path: Path) -> None:
    text = example.describe(make(tmp_path, until="filter"), "prompt4")
    assert "PROMPT prompt4" in text
    assert "ANSWER prompt4-0" in text


@pytest.mark.parametrize(("given", "until"), [("prompt4-", "filter"), ("prompt4", "prepare")])
def test_the_beginning_of_an_id_will_do_if_no_other_has_it(tmp_path: Path, given: str, until: str) -> None:
    assert "PROMPT prompt4" in example.describe(make(tmp_path, until=until), given)


@pytest.mark.parametrize("until", ["prepare", "evaluate"])
def test_an_unknown_id_is_a_user_error_that_names_it(tmp_path: Path, until: str) -> None:
    with pytest.raises(UserError, match="no response or prompt has the id 'nowhere'"):
        example.describe(make(tmp_path, until=until), "nowhere")


def test_prepare_must_have_finished(tmp_path: Path) -> None:
    run_dir = make(tmp_path, until="prepare")
    (run_dir.path / "prepare" / "manifest.json").unlink()
    with pytest.raises(UserError, match="prepare has not finished"):
        example.describe(run_dir, None)


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("prepare", ["generate: not run yet", "filter: not run yet", "train: not run yet", "evaluate: not run yet"]),
        ("generate", ["filter: not run yet", "train: not run yet", "evaluate: not run yet"]),
        ("filter", ["train: not run yet", "evaluate: not run yet"]),
        ("train", ["evaluate: not run yet"]),
        ("evaluate", []),
    ],
)
def test_stages_that_have_not_run_are_one_line_each(tmp_path: Path, until: str, expected: list[str]) -> None:
    text = example.describe(make(tmp_path, until=until), None)
    assert [line for line in text.splitlines() if line.endswith("not run yet")] == expected


def test_a_stage_that_was_stopped_is_told_apart(tmp_path: Path) -> None:
    run_dir = make(tmp_path, until="train")
    (run_dir.path / "train" / "manifest.json").unlink()
    assert "train: begun, not finished" in example.describe(run_dir, None)


@pytest.mark.parametrize(
    ("response_id", "expected"),
    [
        ("prompt0-0", "train: left out: filter dropped it"),
        ("prompt2-0", "train: learnt from it, 7 tokens with its prompt"),
        ("prompt5-0", "train: left out: its prompt is of the held_out split"),
    ],
)
def test_what_train_did_with_it(tmp_path: Path, response_id: str, expected: str) -> None:
    assert expected in example.describe(make(tmp_path, until="train"), response_id).splitlines()


def test_without_filters_decision_nothing_is_said_of_what_train_saw(tmp_path: Path) -> None:
    run_dir = make(tmp_path, until="train")
    (run_dir.path / "filter" / "manifest.json").unlink()
    assert (
        "filter's decision about this answer is missing"
        in lines_of(example.describe(run_dir, "prompt2-0"), "train:")[0]
    )


def test_part_of_a_character_is_shown_by_its_bytes() -> None:
    class Tokenizer:
        backend_tokenizer = SimpleNamespace(decoder="ByteLevel(...)")

        def decode(self, _: list[int]) -> str:
            return "\ufffd"

        def convert_ids_to_tokens(self, token: int) -> str:
            return ["ðŁ", "▁€", ""][token]

    class SentencePiece(Tokenizer):
        backend_tokenizer = SimpleNamespace(decoder="ByteFallback()")

        def convert_ids_to_tokens(self, token: int) -> str:
            return "<0xF0>"

    pieces = example._Pieces.__new__(example._Pieces)
    pieces.problem, pieces._tokenizer = "", Tokenizer()
    assert [pieces.of(token) for token in range(2)] == ['"<F0 9F>"', '"▁€"']
    pieces._tokenizer = SentencePiece()
    assert pieces.of(0) == '"<0xF0>"'


def test_without_the_teacher_tokens_are_shown_by_id(tmp_path: Path) -> None:
    text = example.describe(make(tmp_path, teacher="./gone"), "prompt2-0")
    assert "tokens are shown by id: model ./gone: no such folder" in text
    assert re.search(r"0  #2 +-0\.799  #2 44\.3%  #0 20\.3%", text)


def test_damaged_files_are_user_errors(tmp_path: Path) -> None:
    run_dir = make(tmp_path, until="generate")
    shard = run_dir.path / "generate" / "responses-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"responses-00000\.parquet: damaged"):
        example.describe(run_dir, "prompt1-0")

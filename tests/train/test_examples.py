"""Answers read from a run's shards: which, in what order, and how much of them is in memory."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.listed import Listed

from pipeline import codec
from pipeline import config as config_module
from pipeline import train as train_stage
from pipeline.config import Train
from pipeline.errors import UserError
from pipeline.records import DECISIONS, RESPONSES
from pipeline.run.rundir import RunDir
from pipeline.train import examples as rows_module
from pipeline.train.batches import LengthGrouped, items, sampler
from pipeline.train.examples import (
    COLUMNS,
    MAX_VALIDATION_ANSWERS,
    MIN_ANSWERS_TO_SPLIT,
    WINDOW_SHARDS,
    kept_answers,
    split_validation,
)

PER_SHARD = 6
Row = dict[str, Any]


def response(number: int, num_tokens: int = 4, **changes: Any) -> Row:
    ids_NK = np.tile(np.arange(2, 7, dtype=np.int32), (num_tokens, 1))
    logprobs_NK = np.tile(np.log([0.4, 0.2, 0.1, 0.05, 0.05]), (num_tokens, 1)).astype(np.float32)
    return {
        "response_id": f"prompt{number}-0",
        "conversation_id": f"prompt{number}",
        "prompt_id": f"prompt{number}",
        "sample": 0,
        "split": "train",
        "category": "chat",
        "text": "",
        "finish_reason": "stop",
        "prompt_token_ids": [1, 2, 3][: 1 + number % 3],
        "token_ids": [2] * num_tokens,
        "token_logprobs": logprobs_NK[:, 0].tolist(),
        "logprobs": codec.encode(ids_NK, logprobs_NK, codec.log_tail(logprobs_NK, 100)),
        **dict.fromkeys(("reasoning_tokens", "reasoning_start", "reasoning_end"), 0),
        **changes,
    }


def run_of(
    folder: Path, responses: list[Row], dropped: tuple[int, ...] = (), masked: dict[int, Any] | None = None
) -> RunDir:
    """A run whose generate and filter are done, PER_SHARD answers to a file; `masked`: spans of some."""
    config = config_module.validate({"name": "trial", "runs_dir": str(folder)}, "test")
    run = RunDir(config.run_path)
    places = range(0, len(responses), PER_SHARD)
    generate = run.begin("generate", config, {"teacher.weights": "0"})
    for shard, first in enumerate(places):
        table = pa.Table.from_pylist(responses[first : first + PER_SHARD], schema=RESPONSES)
        generate.commit(table, f"responses-{shard:05d}.parquet")
    generate.finish(sorted(generate.path.glob("*.parquet")), {"responses": len(responses)})
    decided = run.begin("filter", config, {"input.generate": run.output_hash("generate")})
    for shard, first in enumerate(places):
        numbers = range(first, min(first + PER_SHARD, len(responses)))
        lines = [
            {
                "response_id": responses[n]["response_id"],
                "kept": n not in dropped,
                "masked_spans": (masked or {}).get(n),
            }
            for n in numbers
        ]
        decided.commit(pa.Table.from_pylist(lines, schema=DECISIONS), f"decisions-{shard:05d}.parquet")
    decided.finish(sorted(decided.path.glob("*.parquet")), {"kept": len(responses) - len(dropped)})
    return run


def test_answers_are_those_that_filter_kept_of_the_split_and_fit(tmp_path: Path) -> None:
    responses = [response(n, 4 + n % 5) for n in range(20)]
    responses[3]["split"] = responses[9]["split"] = "held_out"
    responses[7]["token_ids"] = [2] * 30
    answers = kept_answers(run_of(tmp_path, responses, dropped=(0, 13)), "train", 20)
    wanted = [n for n in range(20) if n not in (0, 13, 3, 9, 7)]
    assert len(answers) == len(wanted)
    assert answers.too_long == 1
    for place in np.random.default_rng(0).permutation(len(wanted)):
        row = answers[int(place)]
        assert row == {name: responses[wanted[place]][name] for name in COLUMNS} | {
            "token_logprobs": pytest.approx(responses[wanted[place]]["token_logprobs"]),
            "masked_spans": None,
        }
        assert sorted(row) == sorted([*COLUMNS, "masked_spans"])
        assert answers.lengths[place] == len(row["prompt_token_ids"]) + len(row["token_ids"])
    assert [row["response_id"] for row in answers] == [f"prompt{n}-0" for n in wanted]


@pytest.mark.parametrize(("how", "length", "learnt"), [("keep", 9, 8), ("mask", 9, 5), ("drop", 8, 5)])
def test_the_index_knows_what_the_student_is_given_and_learns(
    tmp_path: Path, how: str, length: int, learnt: int
) -> None:
    reasoned = response(0, 8, reasoning_tokens=3, reasoning_start=1, reasoning_end=2)
    nothing_else = response(1, 6, reasoning_tokens=6, reasoning_start=0, reasoning_end=6)
    answers = kept_answers(run_of(tmp_path, [reasoned, nothing_else]), "train", 20, how)
    assert (answers.lengths[0], answers.index.learnt[0]) == (length, learnt)
    assert (len(answers), answers.nothing_to_learn) == ((2, 0) if how == "keep" else (1, 1))


def test_masked_spans_come_with_the_answers_and_are_not_counted_as_learnt(tmp_path: Path) -> None:
    def span(start: int, end: int) -> list[Row]:
        return [{"start": start, "end": end, "kind": "phone"}]

    responses = [response(n, 8) for n in range(PER_SHARD + 3)]
    responses[1] |= {"reasoning_tokens": 4, "reasoning_start": 0, "reasoning_end": 4}
    masked = {1: span(2, 6), 4: span(0, 8), PER_SHARD: span(6, 8)}
    run = run_of(tmp_path, responses, masked=masked)
    answers = kept_answers(run, "train", 20)
    names = {row["response_id"]: row["masked_spans"] for row in answers}
    assert {name: spans for name, spans in names.items() if spans} == {
        "prompt1-0": masked[1],
        f"prompt{PER_SHARD}-0": masked[PER_SHARD],
    }
    assert answers.nothing_to_learn == 1, "all of it is masked"
    learnt = dict(zip(names, answers.index.learnt.tolist(), strict=True))
    assert (learnt["prompt0-0"], learnt["prompt1-0"], learnt[f"prompt{PER_SHARD}-0"]) == (8, 4, 6)
    less = kept_answers(run, "train", 20, "mask")
    assert dict(zip(names, less.index.learnt.tolist(), strict=True))["prompt1-0"] == 2


def test_decisions_that_say_nothing_of_personal_data_are_refused(tmp_path: Path) -> None:
    """Those of an earlier version: train must not learn what they never looked at."""
    run = run_of(tmp_path, [response(n) for n in range(3)])
    config = config_module.validate({"name": "trial", "runs_dir": str(tmp_path)}, "test")
    stage = RunDir(run.path, fresh="always").begin("filter", config, {"input.generate": run.output_hash("generate")})
    stage.commit(pa.table({"response_id": ["a", "b", "c"], "kept": [True] * 3}), "decisions-00000.parquet")
    stage.finish([stage.path / "decisions-00000.parquet"], {})
    with pytest.raises(
        UserError, match=r"has no masked_spans: another version .* `retort filter .*config\.yaml --fresh`"
    ):
        kept_answers(run, "train", 20)


def test_a_run_without_an_answer_that_fits_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no train answer is left.*2 of the answers .* more than train.max_length=4 "):
        kept_answers(run_of(tmp_path, [response(n) for n in range(2)]), "train", 4)


def test_what_train_leaves_out_is_told_with_the_setting_that_keeps_it(capsys: pytest.CaptureFixture[str]) -> None:
    answers = conversations([1] * 30)
    answers.too_long = 10
    train_stage._tell(answers, answers.subset(np.arange(3)), Train(max_length=64))
    assert "10 of the answers that filter kept have more than train.max_length=64 tokens" in said(capsys)
    answers.too_long = 1
    train_stage._tell(answers, answers.subset(np.arange(3)), Train())
    assert said(capsys) == ""


def test_a_validation_that_is_empty_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    answers = conversations([1] * 12)
    train_stage._tell(answers, answers.subset(np.arange(0)), Train(validation_frac=0.1))
    assert (
        "train: none of 12 answers is kept back to validate (fewer than 20), so the last checkpoint is taken"
        in said(capsys)
    )
    train_stage._tell(answers, answers.subset(np.arange(0)), Train(validation_frac=0))
    assert said(capsys) == ""


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_an_altered_shard_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, [response(n) for n in range(8)])
    path = run.path / "generate/responses-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"responses-00001\.parquet: damaged"):
        kept_answers(run, "train", 20)


def read_shards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are read from now on."""
    names: list[str] = []
    read = rows_module.read_committed

    def counted(path: Path, columns: list[str]) -> pa.Table:
        names.append(path.name)
        return read(path, columns)

    monkeypatch.setattr(rows_module, "read_committed", counted)
    return names


def of_responses(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("responses-")]


@pytest.mark.parametrize("pack_tokens", [None, 40])
def test_an_epoch_sees_each_answer_once_and_reads_each_shard_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack_tokens: int | None
) -> None:
    num_shards = 3 * WINDOW_SHARDS + 1
    run = run_of(tmp_path, [response(n, 3 + n % 9) for n in range(num_shards * PER_SHARD - 2)])
    answers, settings = kept_answers(run, "train", 20), Train(batch_size=5, pack_tokens=pack_tokens)
    dataset = items(answers, settings)
    order, names = sampler(dataset, settings), read_shards(monkeypatch)
    for epoch in range(2):
        order.set_epoch(epoch)
        names.clear()
        seen = [answers[n]["response_id"] for item in order for n in dataset[item]["rows"]]
        assert sorted(seen) == sorted(f"prompt{n}-0" for n in range(num_shards * PER_SHARD - 2))
        held = WINDOW_SHARDS if epoch else 0  # what the epoch before has left in memory
        assert num_shards - held <= len(of_responses(names)) <= num_shards
        assert len(names) == 2 * len(of_responses(names)), "each with the decisions about it"
        assert max(Counter(names).values()) == 1


def peak_bytes(folder: Path, num_shards: int) -> int:
    """The most that Arrow held, less what it held before, while an epoch was read."""
    run = run_of(folder, [response(n, 60) for n in range(num_shards * PER_SHARD)])
    before, peak = pa.total_allocated_bytes(), 0
    answers, settings = kept_answers(run, "train", 100), Train(batch_size=4)
    for item in sampler(items(answers, settings), settings):
        assert answers[item]["token_ids"]
        peak = max(peak, pa.total_allocated_bytes() - before)
    return peak


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    few, many = (peak_bytes(tmp_path / str(n), n * WINDOW_SHARDS) for n in (1, 6))
    assert few > WINDOW_SHARDS * PER_SHARD * 60 * 5 * 2, "what is measured is the log-probs"
    assert many < 1.2 * few


def test_the_index_takes_24_bytes_an_answer(tmp_path: Path) -> None:
    answers = kept_answers(run_of(tmp_path, [response(n) for n in range(50)]), "train", 20)
    assert sum(values.nbytes for values in vars(answers.index).values()) == 24 * 50


def order_of(lengths: Any, groups: Any, batch_size: int = 4, seed: int = 0, epoch: int = 0) -> list[int]:
    made = LengthGrouped(lengths, batch_size, seed, groups, together=3)
    made.set_epoch(epoch)
    return list(made)


def test_the_order_is_local_random_and_of_like_lengths() -> None:
    rng = np.random.default_rng(1)
    groups, lengths = np.repeat(np.arange(12), 101), rng.integers(1, 1000, 12 * 101)
    order = order_of(lengths, groups)
    assert sorted(order) == list(range(12 * 101))
    assert order == order_of(lengths, groups)
    others = [order_of(lengths, groups, epoch=1), order_of(lengths, groups, seed=1)]
    assert all(order != other for other in others)
    firsts = [tuple(dict.fromkeys(groups[each].tolist())) for each in (order, *others)]
    assert len(set(firsts)) == 3, "the shards come in another order each time"
    place = {group: [] for group in range(12)}
    for n, row in enumerate(order):
        place[int(groups[row])].append(n)
    assert all(max(of) - min(of) < 3 * 101 + 4 for of in place.values()), "a shard's rows are seen within its window"
    spread = [np.ptp(lengths[order[n : n + 4]]) for n in range(0, len(order), 4)]
    assert np.median(spread) < 30
    means = [lengths[order[n : n + 4]].mean() for n in range(0, 200, 4)]
    assert 0.2 < (np.diff(means) > 0).mean() < 0.8, "batches themselves are not sorted"


@pytest.mark.parametrize("sizes", [[2] * 20, [1, 9, 2, 30, 3, 3, 3, 1, 1, 1, 1, 1, 17]])
def test_a_window_smaller_than_a_batch_leaves_batches_whole(sizes: list[int]) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    for epoch in range(5):
        order = order_of(np.ones(len(groups)), groups, batch_size=8, epoch=epoch)
        assert sorted(order) == list(range(len(groups)))


def test_a_small_corpus_is_shuffled_as_a_whole() -> None:
    groups = np.repeat(np.arange(3), 40)
    order = order_of(np.ones(120), groups)
    assert len({int(groups[row]) for row in order[:12]}) == 3


def conversations(sizes: list[int]) -> Listed:
    """Listed answers of conversations of these sizes."""
    rows = [{"response_id": str(n), "prompt_token_ids": [1], "token_ids": [2]} for n in range(sum(sizes))]
    answers = Listed(rows)
    names = np.repeat([rows_module._hash(f"c{n}") for n in range(len(sizes))], sizes)
    answers.index.conversations[:] = np.array(names, np.uint64)
    return answers


def numbers(answers: Any) -> list[int]:
    return answers.index.places.tolist()


@pytest.mark.parametrize(
    ("sizes", "frac", "low", "high"),
    [
        ([3] * 100, 0.1, 27, 30),
        ([1] * 20, 0.03, 1, 1),
        ([1] * (MIN_ANSWERS_TO_SPLIT - 1), 0.5, 0, 0),
        ([1] * 100, 0.0, 0, 0),
        ([2] * 5000, 0.9, MAX_VALIDATION_ANSWERS, MAX_VALIDATION_ANSWERS),
        ([30], 0.5, 0, 0),
        ([30, 10], 0.01, 10, 10),
        ([30, 31], 0.01, 30, 30),
    ],
)
def test_whole_conversations_are_kept_back(sizes: list[int], frac: float, low: int, high: int) -> None:
    answers = conversations(sizes)
    train, validation = split_validation(answers, frac)
    assert low <= len(validation) <= high
    assert sorted(numbers(train) + numbers(validation)) == list(range(sum(sizes)))
    assert not set(train.index.conversations.tolist()) & set(validation.index.conversations.tolist())
    again = split_validation(answers, frac)
    assert [numbers(each) for each in again] == [numbers(train), numbers(validation)]


def test_which_are_kept_back_is_a_matter_of_their_hash_not_of_their_place() -> None:
    answers = conversations([1] * 200)
    shuffled = answers.subset(np.random.default_rng(0).permutation(200))
    first, second = (set(numbers(split_validation(each, 0.1)[1])) for each in (answers, shuffled))
    assert first == second
    assert first != set(range(20))


def test_turns_of_a_conversation_stay_together_and_validation_rows_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = [response(n, conversation_id=f"c{n // 5}" if n < 50 else None) for n in range(100)]
    answers = kept_answers(run_of(tmp_path, responses), "train", 20)
    train, validation = split_validation(answers, 0.3)
    sides = [{row["response_id"] for row in each} for each in (train, validation)]
    for conversation in range(10):
        members = {f"prompt{n}-0" for n in range(5 * conversation, 5 * conversation + 5)}
        assert members <= sides[0] or members <= sides[1]
    assert 20 < len(validation) <= 30
    names = read_shards(monkeypatch)
    list(validation)
    assert not names, "the second pass needs no file"

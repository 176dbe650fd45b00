"""Selection in the filter stage: the likeliest of several answers, balance, and what is told of it."""

import json
from collections import Counter
from typing import Any

import pytest
from support.captured import Filtered, Row, reasons, response

from pipeline.errors import UserError

CUT = {"finish_reason": "length", "token_ids": [2, 3]}
OFF = {"near_duplicates": None, "drop_exact_duplicates": False, "worst_nll_frac": None}


def with_nll(name: str, nats: float, **changes: Any) -> Row:
    return response(name, token_logprobs=[-nats] * 3, **changes)


def test_the_likeliest_answers_to_a_prompt_stay_across_shards(filtered: Filtered) -> None:
    first = [with_nll("a-0", 0.9), with_nll("a-1", 0.2)]
    second = [with_nll("a-2", 0.5), with_nll("b-0", 2.0), with_nll("c-0", 0.1, **CUT)]
    decisions = filtered.captured(first, second).do(selection={"best_of": 1}, **OFF)
    assert reasons(decisions) == {
        "a-0": ["best_of_n"],
        "a-1": [],
        "a-2": ["best_of_n"],
        "b-0": [],
        "c-0": ["truncated"],
    }
    assert dict(decisions["a-0"]["scores"])["best_of_n"] == pytest.approx(0.9)
    assert "best_of_n" not in dict(decisions["c-0"]["scores"])
    [step] = [s for s in filtered.run_dir.manifest("filter")["waterfall"] if s["reason"] == "best_of_n"]
    assert (step["dropped"], step["alone"]) == (2, 2)
    assert filtered.run_dir.manifest("filter")["settings"]["selection.best_of"] == 1


def test_an_answer_that_a_rule_drops_is_not_the_best_of_several(filtered: Filtered) -> None:
    rows = [with_nll("a-0", 0.1, **CUT), with_nll("a-1", 0.5), with_nll("a-2", 0.9)]
    decisions = filtered.captured(rows).do(selection={"best_of": 1}, **OFF)
    assert reasons(decisions) == {"a-0": ["truncated"], "a-1": [], "a-2": ["best_of_n"]}


def kinds(num: dict[str, int], **changes: Any) -> list[Row]:
    return [response(f"{kind}{n:03d}-0", category=kind, **changes) for kind, of in num.items() for n in range(of)]


def test_no_category_is_above_its_share_and_what_is_held_out_is_let_be(filtered: Filtered) -> None:
    held_out = [response(f"h{n}-0", category="chat", split="held_out") for n in range(9)]
    rows = [*kinds({"chat": 30, "code": 6, "maths": 4}), *held_out]
    decisions = filtered.captured(rows[:20], rows[20:]).do(selection={"max_category_frac": 0.5}, **OFF)
    kept = Counter(row["category"] for row in rows if decisions[row["response_id"]]["kept"] and row["split"] == "train")
    assert kept == {"chat": 10, "code": 6, "maths": 4}
    assert all(decisions[row["response_id"]]["kept"] for row in held_out)
    counts = filtered.run_dir.manifest("filter")["counts"]
    assert counts == {"responses": 49, "kept": 29, "kept_train": 20}
    assert filtered.dropped() == {"category_balance": 20}
    dropped = next(row for row in decisions.values() if row["reasons"])
    assert dict(dropped["scores"])["category_balance"] == pytest.approx(30 / 40)


def test_all_shares_hold_at_once(filtered: Filtered) -> None:
    rows = []
    for number in range(120):
        kind, tokens = ("chat", 3) if number % 3 else ("code", 3 if number % 2 else 9)
        kind = "maths" if number % 10 == 0 else kind
        values = {"token_ids": [2] * (tokens - 1) + [1], "token_logprobs": [-(number % 4) / 2] * tokens}
        rows.append(response(f"p{number:03d}-0", category=kind, **values))
    settings = {"max_category_frac": 0.5, "max_length_frac": 0.6, "max_difficulty_frac": 0.4}
    decisions = filtered.captured(rows).do(selection=settings, **OFF)
    kept = [row for row in rows if decisions[row["response_id"]]["kept"]]
    assert len(kept) > 20
    for key, highest in (
        (lambda row: row["category"], 0.5),
        (lambda row: len(row["token_ids"]).bit_length(), 0.6),
        (lambda row: row["token_logprobs"][0], 0.4),
    ):
        assert max(Counter(map(key, kept)).values()) <= highest * len(kept) + 1e-9


def test_another_seed_keeps_other_answers(filtered: Filtered) -> None:
    filtered.captured(kinds({"chat": 30, "code": 5}))
    kept = []
    for seed in (0, 0, 1):
        filtered.run_dir.discard_from("filter")
        decisions = filtered.do(selection={"max_category_frac": 0.5, "seed": seed}, **OFF)
        kept.append({name for name, row in decisions.items() if row["kept"]})
    assert kept[0] == kept[1] != kept[2]


def test_a_share_too_small_for_the_buckets_is_told(filtered: Filtered) -> None:
    filtered.captured(kinds({"chat": 3, "code": 5}))
    with pytest.raises(UserError, match=r"filter\.selection\.max_category_frac=0\.4: 2 buckets can't all be at most"):
        filtered.do(selection={"max_category_frac": 0.4}, **OFF)


def test_refusals_are_capped_among_what_selection_leaves(filtered: Filtered) -> None:
    sorry = {"text": "I'm sorry, but I can't help with that."}
    rows = [*kinds({"chat": 36, "code": 9}), *kinds({"talk": 9}, **sorry)]
    decisions = filtered.captured(rows).do(selection={"max_category_frac": 0.5}, max_refusal_frac=0.1, **OFF)
    kept = Counter(row["category"] for row in rows if decisions[row["response_id"]]["kept"])
    assert kept == {"chat": 18, "code": 9, "talk": 3}
    assert filtered.dropped() == {"category_balance": 18, "refusal": 6}
    assert filtered.run_dir.manifest("filter")["counts"]["kept"] == 30


def test_nothing_is_selected_by_default(filtered: Filtered) -> None:
    decisions = filtered.captured(kinds({"chat": 30, "code": 1})).do(**OFF)
    assert all(row["kept"] for row in decisions.values())
    assert not [name for row in decisions.values() for name, _ in row["scores"] if "balance" in name]


def test_where_no_answer_is_left_the_rules_are_told_and_not_the_shares(filtered: Filtered) -> None:
    filtered.captured([response("a-0", "")])
    with pytest.raises(UserError, match=r"none of \d answers? is kept to train on \(dropped: empty 1\)"):
        filtered.do(selection={"max_category_frac": 0.5}, **OFF)


@pytest.mark.parametrize(
    ("samples", "said"),
    [(1, "has 1 answer (generate.num_samples)"), (2, "has 2 answers (generate.num_samples)"), (3, "")],
)
def test_best_of_with_nothing_to_choose_from_is_told(
    filtered: Filtered, capsys: pytest.CaptureFixture[str], samples: int, said: str
) -> None:
    filtered.captured([with_nll("a-0", 0.1)])
    path = filtered.run_dir.stage_path("generate") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["fingerprint"]["generate.num_samples"] = samples
    path.write_text(json.dumps(manifest))
    filtered.do(selection={"best_of": 2}, **OFF)
    told = capsys.readouterr().err
    assert said in told
    assert ("drops nothing" in told) == bool(said)

"""filter as a whole, over a generate stage that the test commits."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.captured import END, Filtered, Row, reasons, response

from pipeline import filter as filter_stage
from pipeline.config import validate
from pipeline.errors import UserError
from pipeline.records import PROMPTS
from pipeline.run.files import file_hash
from pipeline.run.rundir import RunDir

Decide = Callable[..., dict[str, Row]]

CUT = {"finish_reason": "length", "token_ids": [2, 3]}
LEAK = {"token_ids": [2, 0, END]}


def test_each_drop_has_its_reasons_and_the_kept_have_none(filtered: Filtered) -> None:
    rows = [response("a-0"), response("b-0", **CUT), response("c-0", "", **LEAK)]
    decisions = filtered.captured(rows).do()
    assert reasons(decisions) == {"a-0": [], "b-0": ["truncated"], "c-0": ["empty", "control_tokens"]}
    assert [row["kept"] for row in decisions.values()] == [True, False, False]


def test_scores_are_kept_of_the_kept_and_the_dropped(filtered: Filtered) -> None:
    decisions = filtered.captured([response("a-0"), response("b-0", **CUT)]).do(max_tokens=None)
    assert dict(decisions["a-0"]["scores"])["too_short"] == 2
    assert dict(decisions["b-0"]["scores"])["truncated"] == 1
    assert "too_long" not in dict(decisions["a-0"]["scores"])


@pytest.mark.parametrize("token", [0, 5], ids=["special", "added"])
def test_a_token_is_special_where_the_teachers_tokenizer_says_so(filtered: Filtered, token: int) -> None:
    rows = [response("a-0"), response("b-0", token_ids=[2, token, END])]
    assert reasons(filtered.captured(rows).do())["b-0"] == ["control_tokens"]


def test_a_plain_token_that_was_added_to_the_tokenizer_is_no_leak(filtered: Filtered) -> None:
    assert reasons(filtered.captured([response("a-0", token_ids=[2, 6, END])]).do()) == {"a-0": []}


REASONED = {"reasoning": "alpha", "reasoning_tokens": 3, "reasoning_start": 1, "reasoning_end": 2}


def test_rules_see_the_answer_without_its_reasoning(filtered: Filtered) -> None:
    """Tags that are special tokens are no leak, and reasoning makes no answer longer."""
    rows = [response("a-0", token_ids=[5, 2, 5, 3, 4, END], **REASONED), response("b-0", token_ids=[2, 5, 3, END])]
    decisions = filtered.captured(rows).do(max_tokens=2)
    assert reasons(decisions) == {"a-0": [], "b-0": ["control_tokens", "too_long"]}
    assert dict(decisions["a-0"]["scores"])["too_short"] == 2


def test_reasoning_that_never_came_to_an_answer_is_dropped(filtered: Filtered) -> None:
    cut = {"token_ids": [5, 2, 3], "finish_reason": "length", "reasoning_tokens": 3}
    decisions = filtered.captured([response("a-0"), response("b-0", "", **cut)]).do(drop_truncated=False)
    assert reasons(decisions)["b-0"] == ["empty", "too_short"]


def test_every_shard_of_answers_has_its_file_of_decisions_in_the_same_order(filtered: Filtered) -> None:
    shards = [[response("b-0"), response("a-0")], [response("c-0")]]
    filtered.captured(*shards).do()
    names = [[row["response_id"] for row in shard] for shard in filtered.shards()]
    assert names == [["b-0", "a-0"], ["c-0"]]


def test_an_answer_already_given_to_the_same_prompt_is_dropped_across_shards(filtered: Filtered) -> None:
    shards = [[response("a-0")], [response("a-1", " ALPHA\n beta"), response("a-2", "beta"), response("b-0")]]
    decisions = filtered.captured(*shards).do()
    assert reasons(decisions) == {"a-0": [], "a-1": ["exact_duplicate"], "a-2": [], "b-0": []}
    assert dict(decisions["a-1"]["scores"])["exact_duplicate"] == 1


def test_a_dropped_answer_makes_no_duplicate_of_the_next(filtered: Filtered) -> None:
    rows = [response("a-0", **CUT), response("a-1"), response("a-2")]
    expected = {"a-0": ["truncated"], "a-1": [], "a-2": ["exact_duplicate"]}
    assert reasons(filtered.captured(rows).do()) == expected


def test_duplicates_are_kept_where_the_rule_is_off(filtered: Filtered) -> None:
    decisions = filtered.captured([response("a-0"), response("a-1")]).do(
        drop_exact_duplicates=False, near_duplicates=None
    )
    assert reasons(decisions) == {"a-0": [], "a-1": []}


def test_the_waterfall_counts_each_drop_once_under_its_first_reason(filtered: Filtered) -> None:
    rows = [response("a-0"), response("a-1"), response("b-0", **CUT), response("c-0", "", **CUT)]
    decisions = filtered.captured(rows).do()
    assert filtered.dropped() == {"empty": 1, "truncated": 1, "exact_duplicate": 1}
    assert sum(filtered.dropped().values()) == sum(not row["kept"] for row in decisions.values())


def test_kept_for_training_leaves_the_held_out_side_aside(filtered: Filtered) -> None:
    filtered.captured([response("a-0"), response("b-0", split="held_out"), response("c-0", **CUT)]).do()
    assert filtered.run_dir.manifest("filter")["counts"] == {"responses": 3, "kept": 2, "kept_train": 1}


def test_nothing_kept_is_told_with_the_rules_that_dropped_it(filtered: Filtered) -> None:
    filtered.captured([response("a-0", **CUT), response("b-0", **CUT), response("c-0", "")])
    with pytest.raises(
        UserError, match=r"none of 3 answers is kept to train on \(dropped: truncated 2, empty 1\)\. "
    ) as caught:
        filtered.do()
    assert "truncated: raise generate.max_tokens, or filter.drop_truncated=false keeps them" in str(caught.value)


def test_rules_that_are_loosened_after_nothing_was_kept_go_on(filtered: Filtered) -> None:
    filtered.captured([response("a-0", **CUT)])
    with pytest.raises(UserError, match=r"filter\.drop_truncated=false"):
        filtered.do()
    assert filtered.do(drop_truncated=False)["a-0"]["kept"]


def test_a_rule_that_drops_more_than_a_fifth_is_told_with_an_example_and_its_setting(
    filtered: Filtered, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [response(f"n{n}-0", f"I am a language model, a made-up answer {n}.") for n in range(3)]
    cut = [response("c0-0", **CUT)]
    filtered.captured([*named, *cut, *(response(f"k{n}-0") for n in range(8))]).do()
    told = " ".join(capsys.readouterr().err.split())
    assert "filter: teacher_identity drops 3 of 12 answers (25%), such as n0-0; to read some: retort sample" in told
    assert "--reason teacher_identity; filter.drop_teacher_identity=false keeps them" in told
    assert "truncated drops" not in told


def test_no_held_out_answer_is_told_with_the_rules_that_dropped_them(
    filtered: Filtered, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = [response(f"h{n}-0", split="held_out", **CUT) for n in range(9)]
    filtered.captured([*held_out, *(response(f"k{n}-0") for n in range(50))]).do()
    told = " ".join(capsys.readouterr().err.split())
    assert "filter: none of 9 held-out answers was kept (dropped: truncated 9); truncated: raise generate.max_t" in told
    assert filtered.run_dir.manifest("filter")["held_out"] == {"responses": 9, "dropped": {"truncated": 9}}


def test_held_out_answers_that_were_kept_are_not_said_to_be_dropped(filtered: Filtered) -> None:
    filtered.captured([response("a-0", **CUT), response("b-0", split="held_out")])
    with pytest.raises(UserError) as caught:
        filtered.do()
    assert "all 2 answers were dropped" not in str(caught.value)


def test_answers_are_neither_copied_nor_changed(filtered: Filtered) -> None:
    filtered.captured([response("a-0"), response("b-0", **CUT)])
    before = {path.name: file_hash(path) for path in (filtered.run_dir.path / "generate").iterdir()}
    filtered.do()
    assert {path.name: file_hash(path) for path in (filtered.run_dir.path / "generate").iterdir()} == before
    [record] = filtered.run_dir.manifest("filter")["files"]
    columns = pq.read_schema(filtered.run_dir.path / "filter" / record["name"]).names
    assert columns == ["response_id", "kept", "reasons", "scores", "masked_spans", "safety"]


def test_a_changed_threshold_is_refused_by_name_and_nothing_is_decided_again(filtered: Filtered) -> None:
    filtered.captured([response("a-0")]).do()
    before = file_hash(filtered.run_dir.path / "filter/manifest.json")
    with pytest.raises(UserError, match=r"filter\.min_tokens was 1, is 2"):
        filtered.do(min_tokens=2)
    assert file_hash(filtered.run_dir.path / "filter/manifest.json") == before


def test_other_answers_make_the_decisions_out_of_date(filtered: Filtered) -> None:
    filtered.captured([response("a-0")]).do()
    stage = filtered.run_dir.path / "generate"
    (stage / "manifest.json").unlink()
    filtered.captured([response("a-0", "beta")])
    with pytest.raises(UserError, match=r"filter was made from what generate wrote before that changed"):
        filtered.do()


def test_the_thresholds_stand_in_the_manifest(filtered: Filtered) -> None:
    filtered.captured([response("a-0")]).do(min_tokens=2)
    assert filtered.run_dir.manifest("filter")["settings"]["min_tokens"] == 2


def test_answers_must_have_been_generated(filtered: Filtered) -> None:
    with pytest.raises(UserError, match="generate has not finished; run it first: retort generate"):
        filtered.do()


def test_a_damaged_shard_of_answers_is_named(filtered: Filtered) -> None:
    filtered.captured([response("a-0")])
    shard = filtered.run_dir.path / "generate/responses-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"responses-00000\.parquet: damaged"):
        filtered.do()


LONG = {"token_ids": [2] * 8 + [END]}


def logprobs(nats: float) -> Row:
    return {**LONG, "token_logprobs": [-nats] * 9}


def test_the_runs_worst_answers_are_those_of_highest_nll_over_all_shards(filtered: Filtered) -> None:
    """Two of ten may go; a short answer is none of them, however unlikely."""
    rows = [response(f"{chr(97 + n)}-0", **logprobs(n / 10)) for n in range(9)]
    short = response("z-0", token_logprobs=[-9.0, -9.0, -9.0])
    decisions = filtered.captured(rows[5:], [*rows[:5], short, response("y-0", **logprobs(0.05))]).do(
        worst_nll_frac=0.2
    )
    assert {name for name, row in decisions.items() if row["reasons"]} == {"h-0", "i-0"}
    assert dict(decisions["i-0"]["scores"])["high_nll"] == pytest.approx(0.8)
    manifest = filtered.run_dir.manifest("filter")
    assert manifest["limits"]["nll_limit_nats"] == pytest.approx(0.6)


def test_reasoning_does_not_count_to_an_answers_nll(filtered: Filtered) -> None:
    thought = {"token_ids": [2] * 20 + [END], "token_logprobs": [-9.0] * 10 + [-0.1] * 11, "reasoning_tokens": 10}
    rows = [response("a-0", **thought), *(response(f"{name}-0", **logprobs(0.2)) for name in "bcde")]
    filtered.captured(rows, [response("f-0", **logprobs(0.3))]).do(worst_nll_frac=0.2)
    assert filtered.dropped() == {"high_nll": 1}


def test_a_run_too_small_for_a_worst_share_has_no_limit(filtered: Filtered) -> None:
    filtered.captured([response("a-0", **logprobs(3.0)), response("b-0", **logprobs(0.1))]).do(worst_nll_frac=0.1)
    assert filtered.run_dir.manifest("filter")["limits"]["nll_limit_nats"] is None
    assert filtered.dropped() == {}


def refusals(num: int, others: int) -> list[Row]:
    refused = [response(f"r{n:02d}-0", "I'm sorry, but I can't help with that.") for n in range(num)]
    return [*refused, *(response(f"k{n:02d}-0") for n in range(others))]


def test_refusals_are_kept_up_to_their_share_of_what_is_kept(filtered: Filtered) -> None:
    """18 others and a tenth: two refusals may stay, so that they are 2 of 20."""
    rows = refusals(6, 18)
    decisions = filtered.captured(rows[:4], rows[4:]).do(max_refusal_frac=0.1)
    kept = [name for name, row in decisions.items() if name.startswith("r") and row["kept"]]
    assert len(kept) == 2
    assert filtered.dropped() == {"refusal": 4}
    assert filtered.run_dir.manifest("filter")["counts"] == {"responses": 24, "kept": 20, "kept_train": 20}
    assert all(dict(decisions[f"r{n:02d}-0"]["scores"])["refusal"] == 1 for n in range(6))
    assert all(bool(row["reasons"]) != row["kept"] for row in decisions.values())


def test_which_refusals_stay_does_not_depend_on_their_order(filtered: Filtered, tmp_path: Path, teacher: Path) -> None:
    rows = refusals(6, 18)
    first = filtered.captured(rows).do(max_refusal_frac=0.1)
    again = Filtered(tmp_path / "again", teacher).captured(rows[::-1]).do(max_refusal_frac=0.1)
    assert {name: row["kept"] for name, row in first.items()} == {name: row["kept"] for name, row in again.items()}


def test_a_refusal_that_another_rule_drops_takes_no_place(filtered: Filtered) -> None:
    rows = refusals(2, 18)
    cut = [response("c-0", "I'm sorry, but I can't help with that.", **CUT)]
    assert filtered.captured([*cut, *rows]).do(max_refusal_frac=0.1)["c-0"]["reasons"] == ["truncated"]
    assert filtered.dropped() == {"truncated": 1}


@pytest.mark.parametrize(("max_frac", "kept"), [(None, 3), (0, 0)])
def test_refusals_are_all_kept_or_none(filtered: Filtered, max_frac: float | None, kept: int) -> None:
    decisions = filtered.captured(refusals(3, 5)).do(max_refusal_frac=max_frac)
    assert sum(row["kept"] for name, row in decisions.items() if name.startswith("r")) == kept


def test_what_each_rule_alone_would_have_dropped(filtered: Filtered) -> None:
    rows = [response("a-0", **CUT), response("a-1", **CUT), response("b-0", "", **LEAK), response("c-0")]
    refused = [response(f"r{n}-0", "I cannot assist with that.", **CUT) for n in range(2)]
    filtered.captured([*rows, *refused]).do(max_refusal_frac=0.1)
    alone = {
        step["reason"]: step["alone"] for step in filtered.run_dir.manifest("filter")["waterfall"] if step["alone"]
    }
    assert alone == {"empty": 1, "truncated": 4, "control_tokens": 1, "exact_duplicate": 1, "refusal": 2}


def test_rules_see_what_was_asked(filtered: Filtered) -> None:
    rows = [response("a-0", "yes"), response("b-0", '{"a": 1}')]
    asked = {"a": "Reply in JSON.", "b": "Reply in JSON."}
    assert reasons(filtered.captured(rows, prompts=asked).do()) == {"a-0": ["broken_json"], "b-0": []}


def test_prompts_that_were_made_anew_since_are_refused(filtered: Filtered) -> None:
    filtered.captured([response("a-0"), response("b-0")])
    (filtered.run_dir.path / "prepare/manifest.json").unlink()
    prompts = [{"prompt_id": "a", "messages": [{"role": "user", "content": "Say alpha."}]}]
    filtered.commit("prepare", {"prepare.decontaminate": []}, "prompts", PROMPTS, prompts)
    with pytest.raises(UserError, match=r"other prompts now than those that were answered; generate again: retort"):
        filtered.do()


def test_prompts_without_answers_are_passed_over(filtered: Filtered) -> None:
    filtered.captured([response("b-0")], prompts={"a": "Never answered."})
    assert list(filtered.do()) == ["b-0"]


def test_filtering_again_with_other_settings_needs_no_answers_anew(filtered: Filtered) -> None:
    filtered.captured([response("a-0"), response("b-0", **CUT)]).do()
    filtered.run_dir = RunDir(filtered.run_dir.path, fresh="always")
    assert filtered.do(drop_truncated=False)["b-0"]["kept"]


def test_a_thousand_brackets_are_no_json_and_no_end_of_the_run(filtered: Filtered) -> None:
    rows = [response("a-0"), response("b-0", "[" * 1500)]
    decisions = filtered.captured(rows, prompts={"b": "Return only valid JSON."}).do()
    assert "broken_json" in reasons(decisions)["b-0"]


def test_filter_leaves_what_prepare_was_run_with_in_the_runs_config(filtered: Filtered) -> None:
    import yaml

    filtered.captured([response("a-0")])
    config = filtered.config()
    data = config.model_dump(mode="json")
    data["privacy"] |= {"prompts": "off", "answers": "drop"}
    filter_stage.run(validate(data, "test"), filtered.run_dir)
    kept = yaml.safe_load((filtered.run_dir.path / "config.yaml").read_text())["privacy"]
    assert (kept["prompts"], kept["answers"]) == ("redact", "drop")


def test_what_near_duplicates_alone_would_drop_is_not_claimed(filtered: Filtered) -> None:
    filtered.captured([response(f"{name}-0") for name in "abc"]).do()
    waterfall = {step["reason"]: step for step in filtered.run_dir.manifest("filter")["waterfall"]}
    assert waterfall["near_duplicate"]["alone"] is None
    assert waterfall["empty"]["alone"] == 0

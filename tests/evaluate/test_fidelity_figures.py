"""What scores.json says of fidelity, and the texts that it is measured on."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import fabricated_run, tiny_model

from pipeline import config as config_module
from pipeline.config import Config, Evaluate
from pipeline.errors import UserError
from pipeline.evaluate import fidelity, measured
from pipeline.evaluate.fidelity import fidelity_figures, forced_responses
from pipeline.evaluate.fidelity.fidelity_figures import BREAKDOWN_MEASURES, EXPOSURE_MEASURES
from pipeline.models.forward.forced import ForcedResponse
from pipeline.records import DECISIONS, RESPONSES
from pipeline.run.rundir import RunDir

SETTINGS = Evaluate(bootstrap=200)
VOCAB_SIZE = 37
Row = dict[str, Any]


def tiny(seed: int) -> Any:
    return tiny_model.make(seed, VOCAB_SIZE)


def chat_rows(arms: list[str], num_items: int = 6) -> Any:
    """Rows of samples.parquet; every third item has a second turn, and each arm answers in its own way."""
    rows = []
    for place, arm in enumerate(arms):
        generator = np.random.default_rng(place)
        for item in range(num_items):
            for turn in range(2 if item % 3 == 0 else 1):
                ids = generator.integers(0, 37, 20 + item).tolist()
                group = {"category": "code" if item % 2 else "maths", "turn": turn}
                rows.append(
                    {"item_id": f"i{item}", "arm": arm, "prompt_token_ids": ids[:4], "token_ids": ids[4:], **group}
                )
    return rows


def scored(arms: dict[str, Any], rows: Any) -> dict[str, Row]:
    held_out = [ForcedResponse(f"h{n}", [1, 2], [3 + n, 4, 5, 6], {"category": "code"}) for n in range(5)]
    answers = {arm: forced_responses.of_arm(rows, arm, 37) for arm in arms}
    sums = fidelity_figures.measure_all(arms, iter(held_out), answers, SETTINGS)
    return {arm: fidelity_figures.sections(sums, arm, SETTINGS) for arm in arms}


def mean(teacher: Any, arm: Any, rows: Any, name: str, measure: str) -> float:
    sums = fidelity.measure(teacher, {"x": arm}, forced_responses.of_arm(rows, name, 37), 64)["x"]
    return sums.of(measure).sum() / sums.num_tokens().sum()


def test_each_arm_is_measured_on_the_teachers_texts_and_on_its_own() -> None:
    arms = {"teacher": tiny(0), "student": tiny(1), "sft_only": tiny(2)}
    rows = chat_rows(list(arms))
    found = scored(arms, rows)
    for arm in ("student", "sft_only"):
        assert {"fidelity", "fidelity_chat", "fidelity_own", "breakdowns", "own_over_chat"} == set(found[arm])
        for section, writer in (("fidelity_chat", "teacher"), ("fidelity_own", arm)):
            wanted = mean(arms["teacher"], arms[arm], rows, writer, "forward_kl_nats")
            assert found[arm][section]["forward_kl_nats"]["value"] == pytest.approx(wanted, rel=1e-5)
            assert found[arm][section]["forward_kl_nats"]["num"] == 6
        for measure in EXPOSURE_MEASURES:
            own, chat = (mean(arms["teacher"], arms[arm], rows, who, measure) for who in (arm, "teacher"))
            if chat:
                assert found[arm]["own_over_chat"][measure]["value"] == pytest.approx(own / chat, rel=1e-5)
    assert set(found["teacher"]) == {"fidelity", "fidelity_chat", "breakdowns"}  # its own answers are the chat's


def slow_quotients(own: np.ndarray, chat: np.ndarray, resamples: int) -> np.ndarray:
    """Items are drawn, each with its own and its chat tokens."""
    generator = np.random.default_rng(9)
    drawn = []
    for _ in range(resamples):
        chosen = generator.integers(0, len(own), len(own))
        (own_sum, own_tokens), (chat_sum, chat_tokens) = own[chosen].sum(axis=0), chat[chosen].sum(axis=0)
        drawn.append((own_sum / own_tokens) / (chat_sum / chat_tokens))
    return np.quantile(drawn, [0.025, 0.975])


def test_own_over_chat_is_paired_by_item_whatever_the_order() -> None:
    generator = np.random.default_rng(0)
    sums = {"own": fidelity.Sums(), "chat": fidelity.Sums()}
    table = {"own": np.zeros((30, 2)), "chat": np.zeros((30, 2))}
    hard = generator.gamma(2, 1, 30)  # an item that is hard is so in both
    for kind, order in (("own", range(30)), ("chat", range(29, -1, -1))):
        for item in order:
            num = int(generator.integers(5, 40))
            text = ForcedResponse(f"i{item}", [0], [0] * num)
            kl_N = hard[item] * generator.gamma(20, 1 / 20, num) * (1.3 if kind == "own" else 1)
            values_NM = np.tile(kl_N[:, None], len(fidelity.MEASURES))
            sums[kind].add(text, values_NM, np.ones((1, num)), [fidelity.ALL])
            table[kind][item] = kl_N.sum(), num
    figure = fidelity_figures.own_over_chat(sums["own"], sums["chat"], Evaluate(bootstrap=10_000))["forward_kl_nats"]
    low, high = slow_quotients(table["own"], table["chat"], 5000)
    assert figure["low"] == pytest.approx(low, rel=0.02)
    assert figure["high"] == pytest.approx(high, rel=0.02)
    assert figure["num"] == 30


def test_a_student_that_is_the_teacher_has_no_multiple_of_zero() -> None:
    teacher = tiny(0)
    arms = {"teacher": teacher, "student": copy.deepcopy(teacher)}
    rows = chat_rows(list(arms))
    assert set(scored(arms, rows)["student"]["own_over_chat"]) == {"top1_agreement_frac", "acceptance_frac"}


def test_without_a_chat_set_there_is_the_held_out_text_alone() -> None:
    found = scored({"teacher": tiny(0), "student": tiny(1)}, [])
    assert set(found["student"]) == {"fidelity", "breakdowns"}
    assert set(found["student"]["breakdowns"]) == {"fidelity"}


def test_breakdowns_have_intervals_and_add_up_to_the_whole() -> None:
    arms = {"teacher": tiny(0), "student": tiny(1)}
    found = scored(arms, chat_rows(list(arms)))["student"]
    of_chat = found["breakdowns"]["fidelity_chat"]
    assert set(of_chat) == {"position", "entropy", "length", "turn", "category"}
    assert list(of_chat["turn"]) == ["1", "2"]
    assert of_chat["turn"]["2"]["forward_kl_nats"]["num"] == 2
    assert set(found["breakdowns"]["fidelity"]) == {"position", "entropy", "length", "category"}
    for dimension in of_chat.values():
        for bucket in dimension.values():
            assert set(bucket) == set(BREAKDOWN_MEASURES)
            for figure in bucket.values():
                assert figure["num"] == 1 or figure["low"] <= figure["value"] <= figure["high"]
        values = [bucket["forward_kl_nats"]["value"] for bucket in dimension.values()]
        whole = found["fidelity_chat"]["forward_kl_nats"]["value"]
        assert min(values) <= whole + 1e-9
        assert max(values) >= whole - 1e-9


def test_an_id_that_the_teacher_cannot_read_ends_the_answer() -> None:
    row = {"item_id": "a", "arm": "student", "turn": 0, "category": None, "prompt_token_ids": [1]}
    rows: Any = [{**row, "token_ids": [5, 40, 6]}, {**row, "token_ids": [40]}, {**row, "token_ids": []}]
    [text] = forced_responses.of_arm(rows, "student", 37)
    assert text.token_ids == [5]
    assert text.groups == {"turn": "1", "category": "uncategorised"}
    torch.testing.assert_close(tiny(0)(torch.tensor([[1, *text.token_ids]])).logits.shape, torch.Size([1, 2, 37]))


def run_of(folder: Path, num_samples: int, kept: bool = True) -> tuple[RunDir, Config]:
    """A run of six prompts in two shards, the odd ones held out, each with some answers."""
    config = config_module.validate({"name": "trial", "runs_dir": str(folder), "teacher": {"model": "x"}}, "test")
    run_dir = RunDir(config.run_path)
    fabricated_run._prepare(run_dir, config)
    stage = run_dir.begin("generate", config, {"generate.num_samples": num_samples})
    rows = []
    for number in range(6):
        for sample in range(num_samples):
            row = fabricated_run._response(number)
            split = "held_out" if number % 2 else "train"
            name = {"response_id": f"prompt{number}-{sample}", "sample": sample, "split": split}
            rows.append({**row, **name, "token_ids": [2, 3, 6, number + 1][sample:]})
    half = len(rows) // 2
    files = [
        fabricated_run._commit(stage, part, RESPONSES, f"responses-{n:05d}.parquet")
        for n, part in enumerate((rows[:half], rows[half:]))
    ]
    stage.finish(files, {"responses": len(rows)})
    stage = run_dir.begin("filter", config, {"input.generate": run_dir.output_hash("generate")})
    decided = [{"response_id": row["response_id"], "kept": kept, "reasons": [], "scores": []} for row in rows]
    files = [
        fabricated_run._commit(stage, part, DECISIONS, f"decisions-{n:05d}.parquet")
        for n, part in enumerate((decided[:half], decided[half:]))
    ]
    stage.finish(files, {"responses": len(rows), "kept": kept * len(rows), "kept_train": kept * half})
    run_dir.begin("train", config, {}).finish([], {})
    return run_dir, config


def with_limit(config: Config, limit: int | None) -> Config:
    return config.model_copy(update={"evaluate": Evaluate(held_out_responses=limit)})


@pytest.mark.parametrize(("limit", "samples"), [(None, [0, 1, 0, 1, 0, 1]), (3, [0, 0, 0]), (5, [0, 0, 0, 1, 1])])
def test_a_limit_takes_the_first_answer_to_each_prompt_before_the_second(
    tmp_path: Path, limit: int | None, samples: list[int]
) -> None:
    run_dir, config = run_of(tmp_path, num_samples=2)
    texts = list(forced_responses.held_out(with_limit(config, limit), run_dir))
    assert [4 - len(text.token_ids) for text in texts] == samples
    assert {text.cluster for text in texts} == {"prompt1", "prompt3", "prompt5"}
    assert all(text.groups == {"category": "writing"} for text in texts)


def test_the_stage_measures_the_models_in_its_folders(tmp_path: Path) -> None:
    run_dir, config = run_of(tmp_path, num_samples=1)
    folders = {arm: tmp_path / arm for arm in ("teacher", "student")}
    for seed, folder in enumerate(folders.values()):
        tiny(seed).save_pretrained(folder)
    rows = chat_rows(list(folders))
    sums, preferred = measured.fidelity(config, run_dir, folders, rows, "float32")
    assert preferred == {}  # no SFT-only arm
    assert {section: set(arms) for section, arms in sums.items()} == {
        "fidelity": {"teacher", "student"},
        "fidelity_chat": {"teacher", "student"},
        "fidelity_own": {"student"},
    }
    assert sums["fidelity"]["teacher"].num_texts == 3
    own = sums["fidelity_own"]["student"]
    wanted = mean(tiny(0), tiny(1), rows, "student", "reverse_kl_nats")
    assert own.of("reverse_kl_nats").sum() / own.num_tokens().sum() == pytest.approx(wanted, rel=1e-5)


def test_no_held_out_answer_is_a_user_error(tmp_path: Path) -> None:
    run_dir, config = run_of(tmp_path, num_samples=1, kept=False)
    with pytest.raises(UserError, match="no held-out answer was kept"):
        list(forced_responses.held_out(config, run_dir))

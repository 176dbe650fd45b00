import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fabricated_run import PLANTED, WEIGHTS_HASH, figure, make, samples, scores
from support.report_reader import Reader, page_of

from pipeline.config import fields
from pipeline.errors import UserError
from pipeline.filter import REASONS
from pipeline.filter.rules import RULES
from pipeline.records import ARMS, SAMPLES
from pipeline.report import charts, figures, page
from pipeline.run import reasons
from pipeline.run.files import write_json
from pipeline.run.rundir import RunDir
from pipeline.text.repetition import is_repetitive


def test_write_makes_report_html_of_an_evaluated_run(run_dir: RunDir) -> None:
    path = page.write(run_dir)
    assert path == run_dir.path / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_run_without_evaluate_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluate has not finished"):
        page.write(make(tmp_path, until="train"))


def test_damaged_scores_are_a_user_error_that_names_the_file(run_dir: RunDir) -> None:
    (run_dir.path / "evaluate" / "scores.json").write_text('{"arms":')
    with pytest.raises(UserError, match=r"scores\.json: damaged"):
        page.write(run_dir)


def test_answers_that_were_cut_short_are_a_user_error(run_dir: RunDir) -> None:
    path = run_dir.path / "evaluate" / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"samples\.parquet: damaged"):
        page.write(run_dir)


def test_sections_come_verdict_first_and_limits_before_how_to_reproduce(run_dir: RunDir) -> None:
    assert page_of(run_dir).sections == [
        "verdict",
        "claims",
        "training",
        "fidelity",
        "tasks",
        "health",
        "risks",
        "prompts",
        "filter",
        "answers",
        "rows",
        "limits",
        "reproduce",
    ]


def test_headline_has_each_arm_with_figures_and_intervals(run_dir: RunDir) -> None:
    headline = {row[0]: row for row in page_of(run_dir).rows[1:5]}
    assert list(headline) == ["Teacher", "Student", "SFT only", "Untrained"]
    expected = ["1.234 1.111 – 1.357", "85.0 % 80.0 – 86.0 %", "80.0 % 75.0 – 81.0 %", "150.0 145.0 – 155.0", "134.5 M"]
    assert headline["Student"][1:] == expected


def test_intervals_are_told_by_what_they_are(run_dir: RunDir) -> None:
    html = page.render(run_dir)
    assert "95 % bootstrap interval over 48 held-out prompts" in html
    assert "median of 3 rounds, with the slowest and the fastest (no 95 % interval)" in html


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    scored = scores()
    del scored["arms"]["sft_only"], scored["arms"]["student"]["speed"], scored["arms"]["untrained"]["cost"]
    del scored["arms"]["student"]["fidelity"]["acceptance_frac"], scored["verdict"]["kl_over_sft_only"]
    scored["arms"]["untrained"]["fidelity"]["forward_kl_nats"] = figure(math.nan)
    scored["arms"]["untrained"]["fidelity"]["top1_agreement_frac"] = figure(0.5, math.nan, math.nan)
    reader = page_of(make(tmp_path, scored=scored))
    headline = {row[0]: row[1:] for row in reader.rows[1:4]}
    assert list(headline) == ["Teacher", "Student", "Untrained"]
    assert headline["Student"][2:4] == ["–", "–"]
    assert headline["Untrained"][:2] == ["–", "50.0 %"]
    assert headline["Untrained"][4] == "–"


@pytest.mark.parametrize("scored", [{"arms": {}, "verdict": {}}, {"arms": {"student": {}}}])
def test_empty_scores_still_make_a_page(tmp_path: Path, scored: dict[str, Any]) -> None:
    assert "evaluate gave no verdict" in page.render(make(tmp_path, scored=scored))


def test_without_an_sft_only_arm_the_limits_say_what_is_unknown(tmp_path: Path) -> None:
    sentence = "What the soft targets gained is unknown"
    assert sentence not in page.render(make(tmp_path / "with"))
    scored = scores()
    del scored["arms"]["sft_only"]
    assert sentence in page.render(make(tmp_path / "without", scored=scored))


def test_own_answers_stand_beside_the_teachers_without_the_teacher(run_dir: RunDir) -> None:
    reader = page_of(run_dir)
    [own] = [row for row in reader.rows_of("Student") if "1.67× 1.51 – 1.83×" in row]
    assert own[1] == "3.085 2.468 – 3.702"
    teacher = reader.rows[reader.rows.index(own) - 1]
    assert (teacher[0], set(teacher[1:])) == ("Teacher", {"–"})
    assert "8 items" in page.render(run_dir)


def test_the_teachers_self_preference_is_shown_as_such_and_is_no_win_rate(run_dir: RunDir, tmp_path: Path) -> None:
    html = page.render(run_dir)
    assert ["SFT only", "68.8 % 50.0 – 87.5 %", "+0.114 -0.020 – +0.250", "8"] in Reader(html).rows
    section = html[html.index("Self-preference") : html.index("Calibration, on")]
    assert "A model finds likely what it would have written" in section
    assert not re.search(r"\bwin|\bwon\b|prefers the student", section)
    scored = scores()
    for unit in ("frac", "nats"):
        del scored["verdict"][f"self_preference_{unit}_over_sft_only"]
    assert "Self-pref" not in page.render(make(tmp_path / "without", scored=scored))


def test_figures_that_are_not_defined_are_dashes(tmp_path: Path) -> None:
    scored = scores()
    student = scored["arms"]["student"]
    student["own_over_chat"]["forward_kl_nats"] = student["quality"]["task_chrf"] = None
    for section in ("fidelity", "fidelity_chat", "fidelity_own"):
        student["breakdowns"][section]["position"]["1-8"]["forward_kl_nats"] = None
    scored["verdict"] |= {"kl_over_sft_only": None, "self_preference_nats_over_sft_only": None}
    reader = page_of(make(tmp_path, scored=scored))
    [tasks] = [row for row in reader.rows_of("Student") if "51.0 % 20.0 – 70.0 %" in row]
    assert tasks[-1] == "–"
    [bucket, *_] = reader.rows_of("1-8")
    assert "–" in bucket
    assert ["SFT only", "68.8 % 50.0 – 87.5 %", "–", "8"] in reader.rows


def test_calibration_has_a_table(run_dir: RunDir) -> None:
    assert ["SFT only", "70.0 % 68.0 – 72.0 %", "50.0 % 25.0 – 71.0 %", "16.0 % 14.0 – 18.0 %"] in [
        row[:4] for row in page_of(run_dir).rows
    ]


def test_breakdowns_are_tables_of_the_students_by_bucket(run_dir: RunDir) -> None:
    reader = page_of(run_dir)
    [late, *_] = reader.rows_of("9-32")
    assert late[:3] == ["9-32", "39", "1.357 1.222 – 1.493"]  # the student's, a tenth more than the first eight
    assert len(late) == 2 + 2 * (len(ARMS) - 1)  # two measures of all arms but the teacher
    assert len(reader.rows_of("1-8")) == 3  # on held-out, chat and own answers
    assert len(reader.rows_of("2")) == 1  # the second turn
    assert [line["name"] for line in reader.specs["kl_by_position"]["data"]][:2] == ["Student", "Student, own answers"]
    assert reader.specs["kl_by_position"]["data"][1]["y"] == pytest.approx([3.085, 3.3935])


def test_scores_without_breakdowns_make_a_page_without_them(tmp_path: Path) -> None:
    scored = scores()
    for arm in scored["arms"].values():
        for section in ("breakdowns", "fidelity_own", "own_over_chat"):
            arm.pop(section, None)
    reader = page_of(make(tmp_path, scored=scored))
    assert "kl_by_position" not in reader.specs
    assert not reader.rows_of("1-8")


def test_what_models_and_prompts_say_is_text(run_dir: RunDir) -> None:
    html = page.render(run_dir)
    assert PLANTED not in html
    assert "<img" not in html.replace(Reader(html).scripts[0], "")
    # summary, both questions, both answers, examples of what was dropped, a category, prompt and tasks of the rows,
    # the first screen
    assert html.count("&lt;script&gt;window.pwned=1") == 1 + 2 + 2 + 2 + 1 + 1 + 6 + 2
    assert "The student is &lt;close&gt; to its teacher." in html


def test_only_the_pages_own_scripts_may_run(run_dir: RunDir) -> None:
    reader = page_of(run_dir)
    allowed = re.search(r"script-src (.*)", reader.policy)
    assert len(reader.scripts) == 2
    assert allowed is not None
    assert allowed[1].split() == [page.script_hash(script) for script in reader.scripts]
    assert "default-src 'none'" in reader.policy


def test_answers_stand_by_item_turn_and_arm_whatever_their_order() -> None:
    items = page.side_by_side(list(reversed(samples())))
    assert [item["item_id"] for item in items] == [f"item-{n}" for n in reversed(range(8))]
    two_turns = items[-1]["turns"]
    assert [[row["arm"] for row in turn] for turn in two_turns] == [list(ARMS), list(ARMS)]
    assert [turn[0]["question"][:12] for turn in two_turns] == ["question 0.0", "question 0.1"]


def test_first_items_are_open_and_cut_answers_are_marked(run_dir: RunDir) -> None:
    html = page.render(run_dir)
    assert html.count('<details class="item" open>') == page.NUM_OPEN_ITEMS
    assert html.count('<details class="item">') == 2 + 4  # of the chat set and of the rows
    assert html.count("<em>cut off</em>") == len(ARMS)  # the answers to item-1


def test_a_run_without_chat_set_says_so(run_dir: RunDir) -> None:
    (run_dir.path / "evaluate" / "samples.parquet").unlink()
    assert "No chat set was answered" in page.render(run_dir)


def test_filter_table_counts_rates_and_what_is_left(run_dir: RunDir) -> None:
    reader = page_of(run_dir)
    assert reader.rows_of("truncated") == [["truncated", "1", "16.7 %", "5", "2", "on"]]
    assert reader.rows_of("repeated ngrams") == [
        ["repeated ngrams", "1", "16.7 %", "4", "2", "max_duplicate_ngram_frac = 0.35"]
    ]


def test_what_a_judge_graded_is_told_where_one_did(run_dir: RunDir) -> None:
    assert "were to be graded" not in page.render(run_dir)
    path = run_dir.path / "filter" / "manifest.json"
    manifest = json.loads(path.read_text())
    tokens = {"prompt_tokens": 12345, "completion_tokens": 678}
    graded = {"model": "<b>judge</b>", "answers": 40, "invalid": 3, **tokens, "cost": 0.5}
    for told, expected in (
        (
            graded,
            "&lt;b&gt;judge&lt;/b&gt; graded 40 answers; 3 grades (7.5 %) could not be read.",
        ),
        (graded | {"answers": 0, "invalid": 0}, "graded 0 answers; 0 grades (0.0 %) could not be read."),
        (graded, "It took 12\u202f345 tokens in and 678 out, and cost 0.50 at the prices in the config."),
    ):
        path.write_text(json.dumps({**manifest, "graded": told}))
        assert expected in " ".join(page.render(run_dir).replace("\u202f", "NNBSP").split()).replace("NNBSP", "\u202f")


def test_each_reason_has_examples_that_cannot_act(run_dir: RunDir) -> None:
    html = page.render(run_dir)
    assert html.count('<details class="item examples">') == 2  # truncated, repeated ngrams
    examples = html.partition('<details class="item examples">')[2].partition("</section>")[0]
    assert "prompt0-0" in examples
    assert "prompt1-0" in examples
    assert "&lt;script&gt;" in examples
    assert "<script" not in examples


def test_a_waterfall_of_an_earlier_version_says_nothing_of_rules_alone(run_dir: RunDir) -> None:
    path = run_dir.path / "filter" / "manifest.json"
    manifest = json.loads(path.read_text())
    for step in manifest["waterfall"]:
        del step["alone"]
    path.write_text(json.dumps(manifest))
    assert page_of(run_dir).rows_of("truncated") == [["truncated", "1", "16.7 %", "5", "–", "on"]]


@pytest.mark.parametrize("stage", ["generate", "prepare"])
def test_a_page_without_answers_or_prompts_has_the_rest(run_dir: RunDir, stage: str) -> None:
    (run_dir.path / stage / "manifest.json").unlink()
    html = page.render(run_dir)
    assert ('<details class="item examples">' in html) == (stage == "prepare")
    assert "repeated ngrams" in html


def test_reproduction_has_command_config_weights_contract_and_times(run_dir: RunDir) -> None:
    html = page.render(run_dir)
    reader = Reader(html)
    assert f"retort run {run_dir.path}/config.yaml name=again" in html
    assert "held_out_frac: 0.1" in html
    assert WEIGHTS_HASH in html
    for key, value in {"worst_sampled_difference_nats": "0.00395", "teacher_kl_nats": "–"}.items():
        assert reader.rows_of(page.CONTRACT[key]) == [[page.CONTRACT[key], value]]
    assert [row[0] for row in reader.rows if row[0] in ("prepare", "generate", "filter", "train", "evaluate")] == [
        "prepare",
        "generate",
        "filter",
        "train",
        "evaluate",
    ]


@pytest.mark.parametrize("text", ["name: [", "- 1", "\xff"])
def test_a_damaged_config_is_one_line(run_dir: RunDir, text: str) -> None:
    (run_dir.path / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.yaml: damaged"):
        page.render(run_dir)


def test_an_answer_that_loops_is_marked(run_dir: RunDir) -> None:
    html = page.render(run_dir)
    assert not any(is_repetitive(row["answer"]) for row in samples())
    assert page.LOOPS not in html
    path = run_dir.path / "evaluate" / "samples.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[3]["answer"] = "So it goes. " * 9
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLES), path)
    marks = [row["mark"] for item in page._chat(run_dir) for turn in item["turns"] for row in turn]
    assert [mark for mark in marks if mark] == [page.LOOPS]


def test_accepted_changes_are_told(run_dir: RunDir) -> None:
    assert "and accepted" not in page.render(run_dir)
    manifest = run_dir.manifest("train")
    manifest["accepted"] = [{"key": "train.max_length", "was": 2048, "is": 1024}]
    write_json(run_dir.path / "train" / "manifest.json", manifest)
    assert page_of(run_dir).rows_of("train")[-1] == ["train", "train.max_length", "2048", "1024"]


def test_curves_have_a_line_per_arm_and_leave_out_a_cut_line(run_dir: RunDir) -> None:
    kl = page_of(run_dir).specs["kl"]["data"]
    assert [(line["name"], line["x"], line["y"]) for line in kl] == [
        ("Student", [1, 5, 10], [1.9, 1.5, 1.0]),
        ("SFT only", [1, 5, 10], [1.9, 1.5, 1.0]),
    ]


def test_an_arm_has_one_colour_everywhere(run_dir: RunDir) -> None:
    html = page.render(run_dir)
    specs = Reader(html).specs
    colours = dict(
        zip(specs["forward_kl"]["data"][0]["y"], specs["forward_kl"]["data"][0]["marker"]["color"], strict=True)
    )
    for line in specs["loss"]["data"] + specs["kl"]["data"]:
        assert line["line"]["color"] == colours[line["name"]]
    assert f".arm-student {{ --arm: {colours['Student']}; }}" in html
    assert len(set(figures.ARM_COLOURS.values())) == len(ARMS)


@pytest.mark.parametrize("ground", ["#ffffff", "#14171a"])
def test_colours_stand_out_on_light_and_dark(ground: str) -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for colour in (*figures.ARM_COLOURS.values(), charts.TOTAL, charts.DROP, charts.GREY):
        darker, lighter = sorted((luminance(colour), luminance(ground)))
        assert (lighter + 0.05) / (darker + 0.05) >= 3, colour  # WCAG 1.4.11, graphics


def test_bars_have_whiskers_to_the_interval_and_leave_the_teacher_out() -> None:
    arms = {
        "teacher": {"fidelity": {"forward_kl_nats": figure(0.0, 0.0, 0.0)}},
        "student": {"fidelity": {"forward_kl_nats": figure(0.5, 0.4, 0.7)}},
        "untrained": {"fidelity": {"forward_kl_nats": figure(2.0)}},
    }
    chart = charts.forward_kl(arms)
    assert chart is not None
    [bars] = chart["data"]
    assert bars["y"] == ["Student", "Untrained"]
    assert bars["error_x"]["array"] == pytest.approx([0.2, 0])
    assert bars["error_x"]["arrayminus"] == pytest.approx([0.1, 0])
    assert chart["layout"]["xaxis"]["range"][1] > 2.0
    assert charts.forward_kl({"teacher": arms["teacher"]}) is None


def test_throughput_has_a_line_for_each_arm_over_the_loads() -> None:
    arms = {
        arm: {"speed": {f"output_tokens_per_s_at_{num}": figure(rate * num, rate, 99 * rate, 3) for num in (1, 8, 32)}}
        for arm, rate in (("student", 20.0), ("teacher", 10.0))
    }
    drawn = charts.throughput(arms)
    assert drawn
    assert [(line["name"], line["x"], line["y"]) for line in drawn["data"]] == [
        ("Teacher", ["1", "8", "32"], [10, 80, 320]),
        ("Student", ["1", "8", "32"], [20, 160, 640]),
    ]
    assert drawn["data"][0]["error_y"]["array"][0] == 980
    for of in arms.values():
        del of["speed"]["output_tokens_per_s_at_8"], of["speed"]["output_tokens_per_s_at_32"]
    assert charts.throughput(arms) is None


def test_break_even_is_where_the_lines_cross() -> None:
    arms = {arm: {"speed": {"output_tokens_per_s": figure(rate)}} for arm, rate in (("teacher", 10), ("student", 20))}
    verdict = {"distillation_s": figure(3600.0), "break_even_output_tokens": figure(72_000.0)}
    drawn = charts.break_even(arms, verdict)
    assert drawn
    teacher, student = ([line["x"], line["y"]] for line in drawn["data"])
    assert teacher == [[0, 144_000], [0, 4]]
    assert student == [[0, 144_000], [1, 3]]  # hours; so that both are 2 at 72,000 tokens
    assert drawn["layout"]["shapes"][0]["x0"] == 72_000
    for arm, num_gpus in (("teacher", 4), ("student", 1)):  # of each GPU 10 and 80, so 80 and 640 on all 8
        arms[arm] = {"speed": {"output_tokens_per_s": figure(10.0 * 4 if arm == "teacher" else 80)}}
        arms[arm]["cost"] = {"num_gpus": figure(num_gpus)}
    on_gpus = charts.break_even(arms, verdict | {"machine_gpus": figure(8)})
    assert on_gpus
    assert sorted(line["y"][1] - line["y"][0] for line in on_gpus["data"]) == pytest.approx(
        [144_000 / 640 / 3600, 144_000 / 80 / 3600]
    )
    never = charts.break_even(arms, {**verdict, "break_even_output_tokens": None})
    assert never
    assert "shapes" not in never["layout"]
    assert charts.break_even(arms, {}) is None


def test_waterfall_goes_from_all_to_kept_over_the_rules_that_dropped() -> None:
    [steps] = charts.waterfall(10, [("empty", 0), ("truncated", 3), ("too long", 1)])["data"]
    assert steps["y"] == ["all answers", "truncated", "too long", "kept"]
    assert steps["x"] == [10, -3, -1, 6]
    assert steps["measure"] == ["absolute", "relative", "relative", "total"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (figures.nats(-1e-9), "0.000"),
        (figures.percent(0.7134), "71.3 %"),
        (figures.tokens(1234.4), "1\u202f234"),
        (figures.milliseconds(0.0123), "12.3"),
        (figures.scaled(134515008), "134.5 M"),
        (figures.scaled(538e6, "B"), "538 MB"),
        (figures.scaled(12.0), "12"),
        (figures.seconds(3.74), "3.7 s"),
        (figures.seconds(725), "12 min 5 s"),
        (figures.seconds(7800), "2 h 10 min"),
    ],
)
def test_numbers_as_people_read_them(written: str, expected: str) -> None:
    assert written == expected


def test_an_interval_that_reads_like_its_value_is_left_out() -> None:
    assert figures.cell(figure(1.0000068, 1.0000063, 1.0000072), figures.percent) == figures.Cell("100.0 %")
    assert figures.cell(figure(0.999, 0.99, 1.0), figures.percent) == figures.Cell("99.9 %", "99.0 – 100.0 %")


def test_every_rule_is_shown_with_a_setting_that_exists() -> None:
    assert set(reasons.REASONS) == set(REASONS)
    assert {name for name, reason in reasons.REASONS.items() if reason.setting is None} == {"empty", "contaminated"}
    assert all(reason.unit and bool(reason.bound) is bool(reason.limit) for reason in reasons.REASONS.values())
    names = {name for name, _ in fields()}
    settings = {reason.setting for reason in reasons.REASONS.values() if reason.setting}
    assert settings <= {*names, *(name.removeprefix("filter.") for name in names)}


def test_every_rule_names_its_source_or_says_that_it_is_ours() -> None:
    for name, rule in RULES.items():
        module = sys.modules[rule.__module__]
        told = f"{rule.__doc__} {module.__doc__}"
        assert re.search(r"[Oo]urs|et al\.|Gopher|C4|open-instruct|20[0-2]\d|after ", told), name


def test_settings_are_told_as_on_off_or_limit() -> None:
    settings = {"drop_truncated": True, "min_tokens": 0, "max_tokens": None, "drop_exact_duplicates": False}
    rules = ["truncated", "too_short", "too_long", "exact_duplicate", "empty"]
    assert [figures.setting_text(rule, settings) for rule in rules] == ["on", "min_tokens = 0", "off", "off", "always"]


def test_a_setting_of_several_limits_and_one_with_the_runs_own() -> None:
    settings = {"max_top_ngram_frac": [0.3, 0.27, 0.24], "worst_nll_frac": 0.01}
    assert figures.setting_text("top_ngrams", settings) == "max_top_ngram_frac = 0.3 / 0.27 / 0.24"
    limits = {"nll_limit_nats": 2.4806}
    assert figures.setting_text("high_nll", settings, limits) == "worst_nll_frac = 0.01: at most 2.48"
    assert figures.setting_text("high_nll", settings, {"nll_limit_nats": None}) == "worst_nll_frac = 0.01"


def test_prompts_that_the_teacher_wrote_are_told_with_how_various_they_are(run_dir: RunDir) -> None:
    assert not page_of(run_dir).rows_of("self instruct")
    path = run_dir.stage_path("prepare") / "manifest.json"
    figures_of = {
        "prompts": 400,
        "distinct_1_frac": 0.25,
        "distinct_2_frac": 0.5,
        "distinct_3_frac": 0.75,
        "cluster_coverage_frac": 0.98,
        "num_clusters_even": 31.42,
    }
    sets = dict.fromkeys(("sources", "written", "all"), figures_of)
    tally = {"wanted": 9, "drafts": 30, "written": 9, "reasons": {"answer_like": 5, "not_needed": 10, "too_short": 6}}
    report = {
        "written": 9,
        "methods": {"self_instruct": tally},
        "diversity": {**sets, "words": 1234, "samples": 48, "clusters": 50},
    }
    write_json(path, {**run_dir.manifest("prepare"), "synthesis": report})
    shown = page_of(run_dir)
    [row] = shown.rows_of("self instruct")
    assert row[1:] == ["30", "9", "45.0 %", "not needed 10, too short 6, answer like 5"]
    [row] = shown.rows_of("Written by the teacher")
    assert row[1:] == ["400", "25.0 %", "50.0 %", "75.0 %", "98.0 %", "31.4"]
    write_json(path, {**run_dir.manifest("prepare"), "synthesis": {**report, "diversity": None}})
    assert not page_of(run_dir).rows_of("Written by the teacher")


def test_tasks_are_shown_by_category(run_dir: RunDir) -> None:
    shown = page_of(run_dir)
    heads = next(row for row in shown.rows if row[0] == "Arm" and any("multi turn" in cell for cell in row))
    assert [cell.split(" ↑")[0] for cell in heads[1:]] == ["arithmetic", "multi turn"]
    students = next(row for row in shown.rows_of("Student") if "27.5 %" in row[1])
    assert students[2].startswith("77.5 %")
    html = page.render(run_dir)
    assert "Tasks: 95 % bootstrap interval over 4–40 items." in html
    assert "Tasks: 95 % bootstrap interval over 6–7 items." in html
    assert "the same 40 tasks" in html
    assert "0.84×" in html  # retained quality; the gap closed is not defined, and has no tile
    assert "between untrained student and teacher" not in html


def test_a_run_without_tasks_has_no_section_of_them(tmp_path: Path) -> None:
    scored = scores()
    for arm in scored["arms"].values():
        arm["quality"] = {key: figure for key, figure in arm["quality"].items() if not key.startswith("task_")}
    assert "tasks" not in page_of(make(tmp_path, scored=scored)).sections

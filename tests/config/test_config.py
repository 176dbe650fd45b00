"""Configuration: what a YAML file and overrides mean, and what is said about each mistake."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import config as config_module
from pipeline.cli import named_files
from pipeline.config import (
    Config,
    EvaluationSet,
    Lora,
    Source,
    Train,
    dump,
    dump_explained,
    layer_indices,
    output_settings,
    validate,
)
from pipeline.errors import UserError

Load = Callable[..., Config]
SETTINGS = dict(config_module.fields())
AWKWARD = ("0E0", "1_0e-3", "Fill in ${name}.", "a\u2028b", "a\u2029b")  # OmegaConf's and YAML's own marks
PLAIN = st.characters(exclude_characters="$\u0085\u2028\u2029", codec="utf-8")  # U+0085: YAML makes it a space


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """`load(text, *overrides)`: the config of a file `trial.yaml` with that text."""

    def from_text(text: str = "", *overrides: str) -> Config:
        path = tmp_path / "trial.yaml"
        path.write_text(text, encoding="utf-8")
        return config_module.load(path, overrides)

    return from_text


def refusal(load: Load, text: str = "", *overrides: str) -> str:
    """What the user is told; one line that begins with the file."""
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def config_with(**sections: object) -> Config:
    return validate({"name": "trial", **sections}, "test")


def test_a_judge_without_chat_answers_to_read_is_refused() -> None:
    judge = {"url": "http://127.0.0.1:8001", "model": "judge"}
    with pytest.raises(
        UserError, match=r"evaluate: judge\.url: a judge needs chat answers, and chat_set=null gives none"
    ):
        validate({"name": "x", "evaluate": {"chat_set": None, "judge": judge}}, "test")


def test_an_empty_file_is_all_defaults_under_the_files_name(load: Load) -> None:
    assert load("") == config_with()
    assert load("").run_path == Path("runs/trial")


def test_a_name_in_the_file_wins_over_the_files_own(load: Load) -> None:
    assert load("name: other").run_path == Path("runs/other")


def test_overrides_win_over_the_file_and_the_last_one_over_the_others(load: Load) -> None:
    loaded = load("train:\n  epochs: 5\n  seed: 3", "train.epochs=1", "train.epochs=2.5")
    assert loaded.train.epochs == 2.5
    assert loaded.train.seed == 3


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=1e-5", 1e-5),
        ("filter.min_tokens=null", None),
        ("student.keep_layers=0-2,5", "0-2,5"),
        ("student.keep_layers=0,3", "0,3"),
        ("teacher.engine={dtype: bfloat16}", {"dtype": "bfloat16"}),
        ("evaluate.chat_set=a=b.jsonl", "a=b.jsonl"),
        ("train.report_to=[tensorboard,wandb]", ("tensorboard", "wandb")),
        ("train.sft_only_arm=true", True),
    ],
)
def test_an_override_has_the_type_of_its_setting(load: Load, override: str, value: object) -> None:
    section, key = override.split("=")[0].split(".")
    assert getattr(getattr(load("", override), section), key) == value


TYPED = ["2024", "007", "7e10583", "1_000", "1e5", "0x1f", "2024-01-01", "yes", "on", "off", "no", "true", "1:30", ".5"]


@pytest.mark.parametrize("typed", TYPED)
def test_a_text_is_taken_as_it_was_typed(load: Load, typed: str) -> None:
    of_file = load(
        f"teacher: {{model: {typed}, revision: {typed}, licence: {typed}}}\n"
        f"prepare: {{sources: [{{path: {typed}, subset: {typed}, prompt: {typed}, category: {typed}}}]}}\n"
        f"filter: {{identity_names: [{typed}]}}\n"
        f"train: {{launch: [--num_processes, {typed}]}}\n"
    )
    [source] = of_file.prepare.sources
    taken = {of_file.teacher.model, of_file.teacher.revision, of_file.teacher.licence, source.path, source.subset}
    assert taken | {source.prompt, source.category, *of_file.filter.identity_names, of_file.train.launch[1]} == {typed}
    by_override = load("", f"teacher.revision={typed}", f"prepare.sources=[{{path: {typed}}}]")
    assert (by_override.teacher.revision, by_override.prepare.sources[0].path) == (typed, typed)
    assert load(dump(by_override)) == by_override


@pytest.mark.parametrize("name", ["2024", "007", "1_000", "7e10583", "null", "yes", "2024-01-01"])
def test_a_run_may_be_called_by_a_number_a_date_or_a_word_of_yaml(load: Load, name: str) -> None:
    assert load(f"name: {name}").name == load("", f"name={name}").name == name


def test_null_is_nothing_where_a_text_may_be_missing_and_quotes_make_it_text(load: Load) -> None:
    assert load("teacher: {revision: null, licence: ~}").teacher.revision is None
    assert load("teacher: {revision: 'null'}").teacher.revision == "null"
    assert load("", "teacher.revision=").teacher.revision is None


def test_a_choice_of_words_is_taken_as_it_was_typed(load: Load) -> None:
    assert load("licence_policy: off\nprivacy: {prompts: off, answers: off}").licence_policy == "off"
    assert load("", "licence_policy=off", "filter.languages=[no, en]").filter.languages == ("no", "en")


def test_where_any_value_may_stand_yaml_decides(load: Load) -> None:
    text = "teacher: {engine: {a: 1e-1, b: on, c: 0x10, d: 1_000, e: '2', f: null, g: 2024-01-01, 8: 017, h: [.5, x]}}"
    engine = {"a": 0.1, "b": True, "c": 16, "d": 1000, "e": "2", "f": None, "g": "2024-01-01", "8": 17, "h": [0.5, "x"]}
    loaded = load(text)
    assert loaded.teacher.engine == engine
    assert load(dump(loaded)) == loaded


def test_a_mark_of_interpolation_is_text(load: Load) -> None:
    assert load("prepare: {sources: [{path: a, system: 'Fill in ${x.'}]}").prepare.sources[0].system == "Fill in ${x."
    assert load("", "evaluate.other=${name}").evaluate.other == "${name}"


def test_a_mapping_joins_the_one_that_is_there_and_a_list_takes_its_place(load: Load) -> None:
    text = "teacher: {engine: {a: 1, b: {c: 2}}}\nprepare: {sources: [{path: a}, {path: b}]}"
    loaded = load(text, "teacher.engine={b: {d: 3}}", "prepare.sources.1.path=c", "prepare.sources[0].limit=2")
    assert loaded.teacher.engine == {"a": 1, "b": {"c": 2, "d": 3}}
    assert [(source.path, source.limit) for source in loaded.prepare.sources] == [("a", 2), ("c", None)]
    assert load(text, "prepare.sources=[{path: d}]").prepare.sources == (Source(path="d"),)
    assert "prepare.sources is a list of 2 entries" in refusal(load, text, "prepare.sources.2.path=c")


def test_an_override_changes_one_of_two_places_that_share_a_value(load: Load) -> None:
    loaded = load("teacher: {engine: &e {a: 1}}\nevaluate: {engine: *e}", "evaluate.engine.a=2")
    assert (loaded.teacher.engine, loaded.evaluate.engine) == ({"a": 1}, {"a": 2})


def test_a_file_whose_name_no_run_can_have_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "my run.yaml"
    path.write_text("")
    with pytest.raises(UserError, match=r"my run\.yaml: a run can't be called 'my run', like the file; add name="):
        config_module.load(path)
    assert config_module.load(path, ["name=trial"]).name == "trial"


def test_a_section_that_is_null_by_default_opens_with_its_defaults(load: Load) -> None:
    assert load().train.lora is None
    lora = load("", "train.lora.r=4").train.lora
    assert lora is not None
    assert (lora.r, lora.alpha) == (4, 32)


def test_a_home_folder_is_expanded(load: Load) -> None:
    assert load("", "runs_dir=~/made").run_path == Path.home() / "made/trial"


def test_a_loaded_config_cannot_be_changed(load: Load) -> None:
    with pytest.raises(ValidationError):
        load().train.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "wrong", "nearest"),
    [
        ("trian: {epochs: 1}", "trian", "train"),
        ("train: {lerning_rate: 1}", "train.lerning_rate", "train.learning_rate"),
        ("train: {lora: {alfa: 3}}", "train.lora.alfa", "train.lora.alpha"),
        ("prepare: {sources: [{pth: a.jsonl}]}", "prepare.sources.0.pth", "prepare.sources.0.path"),
        ("generate: {temprature: 1}", "generate.temprature", "generate.temperature"),
    ],
)
def test_a_mistyped_key_is_told_with_the_nearest_name(load: Load, text: str, wrong: str, nearest: str) -> None:
    message = refusal(load, text)
    assert "trial.yaml: " in message
    assert f"unknown key {wrong}; did you mean {nearest}?" in message


def test_a_mistyped_key_in_an_override_is_told_with_the_nearest_name(load: Load) -> None:
    assert "unknown key filter.max_token; did you mean filter.max_tokens?" in refusal(load, "", "filter.max_token=5")


def test_no_name_is_guessed_for_a_key_like_no_other(load: Load) -> None:
    message = refusal(load, "zzzzqq: 3")
    assert "unknown key zzzzqq" in message
    assert "did you mean" not in message


def test_a_missing_file_is_named_with_where_others_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/none.yaml: no such config file.*configs/"):
        config_module.load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=rf"{tmp_path}: no run here \(no config.yaml\)"):
        config_module.load(tmp_path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs=2", "unknown key epochs; did you mean train.epochs?"),
        ("student.lora.r=4", "unknown key student.lora"),
        ("generate.samples=2", "did you mean generate.num_samples?"),
        ("temperature=1", "did you mean prepare.synthesis.temperature or generate.temperature or train.temperature"),
        (
            "prepare.sources=a.jsonl",
            "prepare.sources: must be a list, such as [{path: a.jsonl}] (given 'a.jsonl')",
        ),
        ("prepare.sources={path: a.jsonl}", "prepare.sources: must be a list, such as [{path: a.jsonl}]"),
        ("filter.decontaminate={path: a}", "filter.decontaminate: must be a list, such as [{path: a.jsonl}]"),
        ("train.report_to={}", "train.report_to: must be a list, such as [a, b]"),
        ("train.lora.target_modules=[]", "train.lora.target_modules: is empty: name the modules to adapt"),
        ("train.lora.target_modules='(q'", "train.lora.target_modules: not a valid regular expression: missing )"),
        ("train.lora.dropout=1", "train.lora.dropout: must be below 1 (given 1)"),
        ("train.launch=--a 'b", "train.launch: must be a list, such as [a, b]"),
        ("train.report_to=[wanb]", "train.report_to.0: must be one of tensorboard, wandb, mlflow"),
        ("train.warmup_frac=1", "train.warmup_frac: must be below 1 (given 1)"),
        ("prepare.sources=[]", "prepare.sources: give at least one source of prompts"),
        ("evaluate.engine.hf_token=x", "set HF_TOKEN in the environment"),
        ("filter.min_tokens=9000", "min_tokens is above max_tokens"),
        ("filter.near_duplicates=0.5", "filter.near_duplicates: must be at least 0.7 (given 0.5)"),
        ("prepare.decontaminate=[{dataset: a, path: b}]", "prepare.decontaminate.0: give exactly one of path and data"),
        ("filter.decontaminate=[{}]", "filter.decontaminate.0: give exactly one of path and dataset"),
        ("filter.languages=[]", "filter.languages: none: no answer could be kept; null is each prompt's own"),
        (
            "filter.languages=[english]",
            "filter.languages.0: must be two or three small letters, such as en",
        ),
        ("filter.max_top_ngram_frac=[0.2,0.2]", "filter.max_top_ngram_frac: takes 3 entries (2 given)"),
        ("filter.max_duplicate_line_frac=[0,0.2]", "filter.max_duplicate_line_frac.0: must be above 0 (given 0)"),
        ("filter.word_length_chars=[12,3]", "filter.word_length_chars: the shortest comes first"),
    ],
)
def test_a_mistake_is_told_with_what_was_meant(load: Load, override: str, said: str) -> None:
    assert said in refusal(load, "", override)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("evaluate.speed_concurrency=1,8", (1, 8)),
        ("evaluate.speed_concurrency=8", (8,)),
        ("evaluate.harness.tasks=gsm8k, ifeval", ("gsm8k", "ifeval")),
        ("teacher.reasoning_tags=<a>,</a>", ("<a>", "</a>")),
        ("teacher.server.urls=http://a:1,http://b:2/v1", ("http://a:1", "http://b:2")),
        ("train.report_to=tensorboard", ("tensorboard",)),
        ("train.launch=--gpu_ids 0,1 --num_processes 2", ("--gpu_ids", "0,1", "--num_processes", "2")),
        ("train.lora.target_modules=q_proj,v_proj", ("q_proj", "v_proj")),
        ("train.lora.target_modules=q_proj", ("q_proj",)),
        ("train.lora.target_modules=all-linear", "all-linear"),
        (r"train.lora.target_modules=.*\.(q|v)_proj", r".*\.(q|v)_proj"),
        ("filter.word_length_chars=2.5,12", (2.5, 12.0)),
        ("filter.languages=en,de", ("en", "de")),
        ("privacy.kinds=email", ("email",)),
    ],
)
def test_a_list_may_be_given_as_a_shell_has_it(load: Load, given: str, read: Any) -> None:
    value: Any = load("", given)
    for name in given.partition("=")[0].split("."):
        value = getattr(value, name)
    assert value == read


def test_a_mistake_inside_a_source_is_told_once(load: Load) -> None:
    message = refusal(load, "", "prepare.sources=[{pth: a.jsonl}]")
    assert message.endswith("unknown key prepare.sources.0.pth; did you mean prepare.sources.0.path?")


def test_a_single_layer_may_be_a_number(load: Load) -> None:
    assert load("", "student.keep_layers=3").student.keep_layers == "3"


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(UserError, match=r"train.report_to: wandb is not installed: pip install wandb"):
        named_files.check(config_with(train={"report_to": ["tensorboard", "wandb"]}))


@pytest.mark.parametrize("override", ["oops", "train.epochs", "--epochs 3", ""])
def test_an_override_without_an_equals_sign_is_quoted_with_an_example(load: Load, override: str) -> None:
    message = refusal(load, "", override)
    assert repr(override) in message
    assert "section.key=value" in message


def test_an_override_whose_value_is_no_yaml_is_refused(load: Load) -> None:
    assert "override 'train.epochs=[1': a `[` is not closed" in refusal(load, "", "train.epochs=[1")


def test_an_override_that_puts_a_value_in_place_of_a_section_is_refused(load: Load) -> None:
    assert "train: " in refusal(load, "", "train=3")


@pytest.mark.parametrize("override", ["prepare.sources.0.path=b.jsonl", "prepare.sources[0].path=b.jsonl"])
def test_an_override_inside_a_list_is_refused_or_done_but_never_crashes(load: Load, override: str) -> None:
    with contextlib.suppress(UserError):
        assert load("prepare:\n  sources:\n    - path: a.jsonl", override).prepare.sources[0].path == "b.jsonl"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", ", line 1: a `[` is not closed, or a comma is missing"),
        ("teacher:\n  engine: {a: 1,\n  b: 2\ntrain: {}", ", line 4: a `{` is not closed"),
        ("teacher:\n\tmodel: demo", ", line 2: a tab in the indentation; YAML allows only spaces there"),
        ("name: a\nname: b", ", line 2: the key name is given twice; keep only one"),
        ("teacher: {model: a, model: b}", ", line 1: the key model is given twice"),
        ("- a\n- b", ": a config is a mapping of sections"),
        ('name: "a\ntrain: {}', ", line 2: a quote is not closed"),
        ("name: a: b", ", line 1: `name: a: b`: put the text in quotes; it holds a `: `"),
        ("teacher:\n  model: a\n   engine: {}", ", line 3: `engine: {}` is not indented like the lines around it"),
        ("prepare:\n  sources:\n  - path: a\n   limit: 3", ", line 4: `limit: 3` is not indented like"),
        ("name\nteacher: {}", ", line 2: `teacher: {}` is not indented like the lines around it, or the line before"),
        ("name: @a", ", line 1: `name: @a`: put the text in quotes"),
        ("name: *a", ", line 1: `name: *a`: `*` and `&` mark references in YAML; put the text in quotes"),
        ("name: !a b", ", line 1: `name: !a b`: `!` marks a tag in YAML; put the text in quotes"),
        ("name: !!python/object:os.system a", ", line 1: `name: !!python/object:os.system a`: `!` marks a tag in YAML"),
        ("name: a\n---\nname: b", ", line 2: a second document begins (`---`); a config must be a single document"),
        ("? [a]\n: b", ", line 1: `? [a]`: a key must be a word, without brackets"),
        ("name: a\x01", ", line 1: YAML can't hold the character U+0001; remove it"),
        ("a: &a [*a]", ": a reference (`*`) refers to itself; write the value out"),
    ],
)
def test_malformed_yaml_is_told_in_our_words_with_its_file_and_line(load: Load, text: str, said: str) -> None:
    assert f"trial.yaml{said}" in refusal(load, text)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("name=with space", "name: may hold letters, digits, . _ and -, and begins with a letter, a digit or _ (given"),
        ("train.epochs=", "train.epochs: must be a number (given nothing)"),
        ("train.epochs=[1]", "train.epochs: must be a number (given [1])"),
        ("generate.max_tokens=1.5", "generate.max_tokens: must be a whole number (given 1.5)"),
        ("train.sft_only_arm=maybe", "train.sft_only_arm: must be true or false (given 'maybe')"),
        ("teacher.model=[a]", "teacher.model: must be text (given ['a'])"),
        ("train.epochs=.inf", "train.epochs: must be a finite number (given inf)"),
        ("train=3", "train: must be a mapping of settings (given 3)"),
        ("prepare.sources=[a]", "prepare.sources.0: must be a mapping, such as {path: prompts.jsonl} (given 'a')"),
        ("train.dtype=float3", "train.dtype: must be one of auto, float32, bfloat16; did you mean float32? (given"),
        ("train.lora.bits=5", "train.lora.bits: must be one of 4, 8 (given 5)"),
        (
            "train.lora.target_modules={a: b}",
            "train.lora.target_modules: must be text or a list, such as [a, b]",
        ),
        ("filter.max_top_ngram_frac=[0.1,0.1,0.1,0.1]", "filter.max_top_ngram_frac: takes at most 3 entries (4 given)"),
        ("privacy.presidio.entities=[]", "privacy.presidio.entities: takes at least 1 entry (0 given)"),
        (
            "student.keep_layers=first",
            "student.keep_layers: must be ranges of layers, such as 0-11,18-29 (given 'first')",
        ),
        ("train.epochs=http://me:secret@host:1", "(given 'http://…@host:1')"),
        ("teacher.server.urls=http://me:secret@host:1", "no name or password in a URL"),
        ("a..b=3", "'a..b=3' is not an override: write section.key=value"),
        ("=3", "'=3' is not an override: write section.key=value"),
        ("prepare.sources=[{path:", "is not closed, or a comma is missing; put the whole override in quotes"),
    ],
)
def test_no_message_is_a_librarys(load: Load, override: str, said: str) -> None:
    message = refusal(load, "", override)
    assert said in message
    for theirs in ("input should", "valid ", "pattern", "any token", "tuple", "dict", "secret"):
        assert theirs not in message.lower()


def test_a_long_value_is_cut_with_a_mark(load: Load) -> None:
    assert refusal(load, "", f"train.dtype={'x' * 300}").endswith("x…)")


def test_a_file_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_bytes(b"\xff\xfename: a")
    with pytest.raises(UserError, match=r"trial\.yaml"):
        config_module.load(path)


@pytest.mark.parametrize(
    "override",
    [
        "prepare.held_out_frac=1",
        "prepare.held_out_frac=-0.1",
        "prepare.shard_prompts=0",
        "prepare.bad_rows=ignore",
        "generate.num_samples=0",
        "generate.temperature=-1",
        "generate.temperature=10.5",
        "generate.top_p=0",
        "generate.top_p=1.1",
        "generate.top_k=-1",
        "generate.max_tokens=0",
        "generate.max_tokens=1.5",
        "generate.max_tokens=many",
        "generate.k=0",
        "generate.seed=-1",
        "filter.max_duplicate_ngram_frac=1.01",
        "filter.min_tokens=-1",
        "filter.max_refusal_frac=1",
        "filter.worst_nll_frac=1",
        "filter.max_span_nll_nats=0",
        "student.keep_layers=first half",
        "train.epochs=0",
        "train.epochs=.nan",
        "train.epochs=.inf",
        "train.learning_rate=0",
        "train.learning_rate=.inf",
        "train.ce_weight=-0.1",
        "train.warmup_frac=1.5",
        "train.dtype=float16",
        "train.lora.dropout=2",
        "evaluate.speed_rounds=0",
        "export.dtype=int8",
        "name=../elsewhere",
        "name=..",
        "name=with space",
    ],
)
def test_a_value_out_of_range_is_told_with_its_key_and_what_was_given(load: Load, override: str) -> None:
    key, value = override.split("=")
    message = refusal(load, "", override)
    assert f"trial.yaml: {key}: " in message
    assert f"(given {value.lstrip('.')}" in message or f"(given '{value}')" in message


@pytest.mark.parametrize(
    "override",
    [
        "prepare.held_out_frac=0",
        "generate.temperature=0",
        "generate.temperature=10",
        "generate.top_p=1",
        "train.ce_weight=0",
    ],
)
def test_the_ends_of_a_range_are_inside_it(load: Load, override: str) -> None:
    section, key = override.split("=")[0].split(".")
    assert getattr(getattr(load("", override), section), key) == float(override.split("=")[1])


def test_all_mistakes_are_told_at_once(load: Load) -> None:
    message = refusal(load, "", "train.epochs=0", "generate.kk=1", "generate.top_p=2")
    for key in ("train.epochs", "generate.kk", "generate.top_p"):
        assert key in message


def test_an_answer_that_exists_is_scored_once(load: Load) -> None:
    assert "num_samples must be 1" in refusal(load, "", "generate.mode=score", "generate.num_samples=2")
    assert load("", "generate.mode=score").generate.mode == "score"


@pytest.mark.parametrize("tags", ["[<think>]", "[<think>, <think>]", "['', </think>]"])
def test_reasoning_has_two_tags(load: Load, tags: str) -> None:
    assert "teacher.reasoning_tags" in refusal(load, "", f"teacher.reasoning_tags={tags}")


@pytest.mark.parametrize("source", [{}, {"path": "a.jsonl", "dataset": "b"}], ids=["neither", "both"])
def test_a_source_has_exactly_one_origin(source: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"prepare\.sources\.0: give exactly one of path and dataset"):
        config_with(prepare={"sources": [source]})


def test_training_on_nothing_is_refused(load: Load) -> None:
    assert "both 0: nothing would be learnt" in refusal(load, "", "train.ce_weight=0", "train.kd_weight=0")


@settings(max_examples=60, deadline=None, database=None)
@given(system=st.text(PLAIN), epochs=st.floats(1e-3, 1e6), limit=st.integers(1, 10**9))
def test_a_dumped_config_loads_to_itself(
    tmp_path_factory: pytest.TempPathFactory, system: str, epochs: float, limit: int
) -> None:
    sources = [{"path": "a.jsonl", "system": system, "limit": limit}]
    config = config_with(prepare={"sources": sources}, train={"epochs": epochs, "lora": {"r": 2}})
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert config_module.load(path) == config


@pytest.mark.parametrize("system", AWKWARD)
def test_a_dumped_config_with_an_awkward_text_loads_to_itself(tmp_path: Path, system: str) -> None:
    config = config_with(prepare={"sources": [{"path": "a.jsonl", "system": system}]})
    path = tmp_path / "dumped.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert config_module.load(path) == config


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"hf_token": "hf_secret"}, "set HF_TOKEN in the environment"),
        ({"max_model_len": 0}, "max_model_len is a number of tokens"),
        ({"max_model_len": "long"}, "max_model_len is a number of tokens"),
    ],
)
def test_what_may_not_be_asked_of_the_engine(engine: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=rf"teacher\.engine: .*{said}") as caught:
        config_with(teacher={"engine": engine})
    assert "hf_secret" not in str(caught.value)


def test_the_explained_config_is_yaml_of_the_same_config() -> None:
    config = config_with(prepare={"sources": [{"path": "a # b.jsonl", "system": "Two\nlines: #1"}]})
    assert yaml.safe_load(dump_explained(config)) == config.model_dump(mode="json")


def test_the_explained_config_has_a_line_with_the_meaning_of_every_setting() -> None:
    lines = dump_explained(config_with()).splitlines()
    for name, field in SETTINGS.items():
        assert field.description, f"{name} has no description"
        key = name.split(".")[-1]
        assert any(line.strip().startswith(f"{key}: ") and line.endswith(f"# {field.description}") for line in lines), (
            name
        )


def test_the_explained_config_has_the_meaning_of_every_key_of_a_lists_items_once() -> None:
    config = config_with(prepare={"sources": [{"path": "a.jsonl"}, {"path": "b.csv", "limit": 3}]})
    text = dump_explained(config)
    assert yaml.safe_load(text) == config.model_dump(mode="json")
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    for section in (Source, EvaluationSet):
        for key, field in section.model_fields.items():
            assert any(line.startswith(f"{key}: ") and line.endswith(f"# {field.description}") for line in lines), key
    assert text.count(Source.model_fields["template"].description or "") == 1


def test_the_explained_config_has_the_keys_of_a_part_that_is_null() -> None:
    lines = [line.strip() for line in dump_explained(config_with()).splitlines()]
    assert "lora: null  # Adapters in place of full fine-tuning." in lines
    for key, field in Lora.model_fields.items():
        assert any(line.startswith(f"# {key}: ") and line.endswith(f"# {field.description}") for line in lines), key


def test_an_unknown_key_that_is_like_none_is_told_with_those_that_are_known() -> None:
    with pytest.raises(
        UserError, match=r"unknown key prepare\.sources\.0\.qqqqq; the keys here are path, dataset, .*limit, weight$"
    ):
        config_with(prepare={"sources": [{"path": "a.jsonl", "qqqqq": 1}]})


def test_a_malformed_template_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "t.jinja").write_text("{% if %}")
    source = {"path": f"{tmp_path}/a.jsonl", "template": f"{tmp_path}/t.jinja"}
    with pytest.raises(UserError, match=r"t\.jinja: malformed Jinja template: .*\(prepare\.sources\)"):
        named_files.check(config_with(prepare={"sources": [source]}))


def test_fields_are_dotted_names_of_settings_and_no_sections() -> None:
    assert {"name", "train.learning_rate", "teacher.engine", "export.dtype"} <= SETTINGS.keys()
    assert not {"train", "teacher", "export"} & SETTINGS.keys()


def test_settings_of_pace_are_no_part_of_what_a_stage_writes() -> None:
    left_out = set(Train.model_fields) - set(output_settings(Train()))
    assert left_out == {"head_chunk_tokens", "log_steps", "report_to"}
    assert output_settings(Train(log_steps=7)) == output_settings(Train())
    assert output_settings(Train(epochs=7)) != output_settings(Train())


def test_output_settings_are_plain_json() -> None:
    prepare = config_with(prepare={"sources": [{"path": "a.jsonl"}]}).prepare
    assert output_settings(prepare)["sources"] == [Source(path="a.jsonl").model_dump(mode="json")]


@pytest.mark.parametrize(
    ("text", "layers"),
    [("0-2,5", [0, 1, 2, 5]), ("7", [7]), (" 0 - 1 , 3 ", [0, 1, 3]), ("0,1,2", [0, 1, 2]), ("4-4", [4])],
)
def test_ranges_of_layers_are_listed(text: str, layers: list[int]) -> None:
    assert layer_indices(text) == layers


@pytest.mark.parametrize("text", ["3-1", "1,1", "5,2", "0-3,2-4"])
def test_layers_that_do_not_ascend_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"student\.keep_layers .*must ascend"):
        layer_indices(text)


@pytest.mark.parametrize("text", ["", " ", "-1", "1-2-3", "2,", "a"])
def test_what_is_no_range_of_layers_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"student\.keep_layers .*0-11,18-29"):
        layer_indices(text)

"""Each rule alone: what it measures, where its threshold is, and how it is turned off."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import codec
from pipeline.config import Filter
from pipeline.errors import UserError
from pipeline.filter.rules import RULES, Response, Run, confidence

END = 1  # the end-of-turn, a special token
RUN = Run(special_ids=frozenset({0, END}), stop_ids=frozenset({END}), nll_limit_nats=2.0)
Verdict = tuple[float, bool] | None
TEN_WORDS = "one two three four five six seven eight nine ten"
SENTENCES = [  # twelve words each
    "A fox crossed the frozen lake at dawn while nobody watched it.",
    "Bakers in our street begin their work when other people go home.",
    "Maps lie a little, since paper is flat and this planet is round.",
    "Every violin has one voice of its own, and players learn to listen.",
]


def response(text: str = "Hello.", body: int | list[int] = 3, finish_reason: str = "stop", **more: Any) -> Response:
    """An answer of that many plain tokens, or of these, and its end-of-turn where it was finished."""
    tokens = [7] * body if isinstance(body, int) else body
    ended = [END] if finish_reason == "stop" else []
    return Response(text, tokens + ended, finish_reason, run=RUN, **more)


def verdict(rule: str, answer: Response, **settings: Any) -> Verdict:
    return RULES[rule](answer, Filter(**settings))


@pytest.mark.parametrize(("text", "expected"), [("", (0, False)), (" \n\t ", (0, False)), (" a ", (1, True))])
def test_an_answer_of_white_space_is_empty(text: str, expected: Verdict) -> None:
    assert verdict("empty", response(text)) == expected


@pytest.mark.parametrize(("finish_reason", "expected"), [("stop", (0, True)), ("length", (1, False))])
def test_an_answer_that_hit_the_limit_is_truncated(finish_reason: str, expected: Verdict) -> None:
    assert verdict("truncated", response(finish_reason=finish_reason)) == expected


@pytest.mark.parametrize(
    ("body", "finish_reason", "expected"),
    [
        ([7, 8], "stop", (0, True)),
        ([7, 0, 8], "stop", (1, False)),
        ([7, END, 0], "stop", (2, False)),
        ([7, 8], "length", (0, True)),
        ([7, 0], "length", (1, False)),
    ],
)
def test_special_tokens_before_the_end_of_turn_are_counted(
    body: list[int], finish_reason: str, expected: Verdict
) -> None:
    assert verdict("control_tokens", response(body=body, finish_reason=finish_reason)) == expected


@pytest.mark.parametrize(("body", "keep"), [(4, False), (5, True), (6, True)])
def test_the_shortest_answer_is_counted_without_its_end_of_turn(body: int, keep: bool) -> None:
    assert verdict("too_short", response(body=body), min_tokens=5) == (body, keep)
    assert verdict("too_short", response(body=body, finish_reason="length"), min_tokens=5) == (body, keep)


@pytest.mark.parametrize(("body", "keep"), [(4, True), (5, True), (6, False)])
def test_the_longest_answer_is_counted_without_its_end_of_turn(body: int, keep: bool) -> None:
    assert verdict("too_long", response(body=body), max_tokens=5) == (body, keep)


@pytest.mark.parametrize(("times", "keep"), [(1, True), (3, True), (4, False)])
def test_a_sentence_may_stand_in_a_row_so_many_times(times: int, keep: bool) -> None:
    assert verdict("repeated_sentence", response("Yes. " * times), max_sentence_repeats=3) == (times, keep)


@pytest.mark.parametrize(
    "code", ["```\nx = 1\n```\n", "def f(x):\n    return x\n", "import os\n", "#include <stdio.h>\n"]
)
def test_lines_in_an_answer_with_code_may_stand_twice_as_often(code: str) -> None:
    answers = {times: response(code + "print(x)\n" * times) for times in (6, 7)}
    verdicts = {
        times: verdict("repeated_sentence", answer, max_sentence_repeats=3) for times, answer in answers.items()
    }
    assert verdicts == {6: (6, True), 7: (7, False)}


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("Lemon-" * 20, "Name a fruit.", (20, False)),
        ("我喜欢你" * 8, "你好", (8, False)),
        ("the cat sat " * 6, "Tell me a story.", (5, False)),  # the last without its space is no whole one
        ("ha " * 40, "Repeat the word ha 40 times.", (1, True)),
        ("Ha ha ha, that is so funny that I will tell it to all of my friends.", "Tell me a joke.", (1, True)),
        ("```\n" + "x = [None, None, None, None, None, None]\n" + "```", "Write code.", (1, True)),
        ("\n".join(f"{n}. Use a different approach here" for n in range(1, 12)), "How?", (11, False)),
    ],
)
def test_a_loop_that_is_no_sentence_is_dropped_unless_it_was_asked_for(
    text: str, prompt: str, expected: Verdict
) -> None:
    assert verdict("repeated_sentence", response(text, prompt=prompt), max_sentence_repeats=3) == expected


def test_a_loop_of_words_is_dropped_from_its_share_on() -> None:
    """Ten words four times are 31 10-grams, 10 of them different."""
    answer, share = response(" ".join([TEN_WORDS] * 4)), 21 / 31
    assert verdict("repeated_ngrams", answer, max_duplicate_ngram_frac=share + 1e-6) == (pytest.approx(share), True)
    assert verdict("repeated_ngrams", answer, max_duplicate_ngram_frac=share - 1e-6) == (pytest.approx(share), False)


@pytest.mark.parametrize(
    ("rule", "off"),
    [
        ("truncated", {"drop_truncated": False}),
        ("control_tokens", {"drop_control_tokens": False}),
        ("template_markup", {"drop_template_markup": False}),
        ("unclosed_fence", {"drop_unclosed": False}),
        ("unclosed_tag", {"drop_unclosed": False}),
        ("broken_characters", {"drop_broken_characters": False}),
        ("too_short", {"min_tokens": None}),
        ("too_long", {"max_tokens": None}),
        ("echo", {"max_echo_frac": None}),
        ("broken_json", {"drop_broken_json": False}),
        ("repeated_sentence", {"max_sentence_repeats": None}),
        ("repeated_paragraph", {"max_paragraph_repeats": None}),
        ("repeated_ngrams", {"max_duplicate_ngram_frac": None}),
        ("top_ngrams", {"max_top_ngram_frac": None}),
        ("duplicate_ngrams", {"max_duplicate_ngram_char_frac": None}),
        ("duplicate_lines", {"max_duplicate_line_frac": None}),
        ("duplicate_paragraphs", {"max_duplicate_paragraph_frac": None}),
        ("few_words", {"min_word_frac": None}),
        ("symbols", {"max_symbol_frac": None}),
        ("word_lengths", {"word_length_chars": None}),
        ("wrong_language", {"max_other_language_prob": None}),
        ("unexpected_script", {"max_unexpected_script_frac": None}),
        ("confident_loop", {"max_loop_tokens": None}),
        ("low_confidence_span", {"max_span_nll_nats": None}),
        ("teacher_identity", {"drop_teacher_identity": False}),
        ("refusal", {"max_refusal_frac": None}),
    ],
)
def test_a_rule_that_is_off_says_nothing(rule: str, off: dict[str, Any]) -> None:
    text = "\n\n".join(SENTENCES * 2)
    answer = response(text, 100, prompt="Output JSON about the fox on the frozen lake at dawn.", **nats([0.1] * 101))
    assert verdict(rule, answer, **off) is None
    assert verdict(rule, answer) is not None


def test_rules_that_no_setting_of_the_shipped_config_turns_on_say_nothing() -> None:
    answer = response("word " * 900, prompt="Translate: " + "word " * 30, finish_reason="length")
    assert [name for name in ("unfinished", "length_ratio") if verdict(name, answer) is not None] == []


def test_an_ordinary_answer_passes_every_rule_as_shipped() -> None:
    text = "Rain is water that falls from clouds. It forms when vapour cools.\n\n1. Clouds gather.\n2. Drops grow."
    assert [name for name, rule in RULES.items() if not (rule(response(text, 30), Filter()) or (0, True))[1]] == []


# --- form


def packed(end_prob: float) -> dict[str, Any]:
    """Log-probs of two tokens; in the last row the end-of-turn has this probability."""
    logprobs_NK = np.log(np.array([[0.6, 0.2, 0.1], [0.7 - end_prob, end_prob, 0.2]], np.float32))
    return codec.encode(np.array([[7, 8, 9], [7, END, 9]], np.int32), logprobs_NK, codec.log_tail(logprobs_NK, 100))


@pytest.mark.parametrize(("end_prob", "keep"), [(0.4, True), (0.1, False)])
def test_an_answer_cut_off_where_it_could_have_ended_is_nearly_whole(end_prob: float, keep: bool) -> None:
    answer = response(body=[7, 7], finish_reason="length", logprobs=packed(end_prob))
    assert verdict("unfinished", answer, min_end_prob=0.25) == (pytest.approx(end_prob, abs=0.01), keep)


def test_an_end_of_turn_outside_the_stored_rows_has_no_probability() -> None:
    answer = Response("a", [7, 7], "length", logprobs=packed(0.4), run=Run(stop_ids=frozenset({5})))
    assert verdict("unfinished", answer, min_end_prob=0.01) == (0, False)


def test_of_answers_that_ended_or_have_no_rows_nothing_is_said() -> None:
    assert verdict("unfinished", response(logprobs=packed(0.4)), min_end_prob=0.01) is None
    assert verdict("unfinished", response(finish_reason="length"), min_end_prob=0.01) is None


def test_rows_that_are_damaged_are_a_users_error() -> None:
    answer = response(finish_reason="length", logprobs={**packed(0.4), "version": 1})
    with pytest.raises(UserError, match=r"filter: not packed log-probs of version 2.*; generate again: --fresh"):
        verdict("unfinished", answer, min_end_prob=0.01)


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("```\nx\n```", False),
        ("```py\nx", True),
        ("~~~\nx\n```\n", True),
        ("````\n```\nx\n````", False),
        ("- a\n  ```sh\n  x\n  ```\n- b", False),
        ("1. ```sh\n   x", True),
        ("```x = 1```", False),
        ("```\na\n```\n```\nb", True),
    ],
)
def test_a_fence_is_closed_by_its_own_kind(text: str, is_open: bool) -> None:
    assert verdict("unclosed_fence", response(text)) == (float(is_open), not is_open)
    assert verdict("unclosed_fence", response(text, finish_reason="length")) is None


@pytest.mark.parametrize(
    ("text", "num"),
    [("<think>a</think> b", 0), ("<think>a", 1), ("a</think>b</think>", 2), ("`<think>` opens it", 0), ("a < b", 0)],
)
def test_reasoning_tags_come_in_pairs(text: str, num: int) -> None:
    assert verdict("unclosed_tag", response(text)) == (num, num == 0)


@pytest.mark.parametrize(
    ("text", "finish_reason", "num"), [("a\ufffd", "stop", 1), ("a\ufffd", "length", 0), ("a\tb\nc", "stop", 0)]
)
def test_half_a_character_is_allowed_where_an_answer_was_cut(text: str, finish_reason: str, num: int) -> None:
    assert verdict("broken_characters", response(text, finish_reason=finish_reason)) == (num, num == 0)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("one two three four five six seven eight nine ten", 1),
        ("One two, three; four five six seven eight nine ten eleven twelve.", 10 / 12),
        ("one two three four five six seven eight, no", 0.8),
        ("two three four five six seven eight nine ten", 0),
        ("", 0),
    ],
)
def test_an_echo_is_measured_from_the_start(answer: str, share: float) -> None:
    score = verdict("echo", response(answer, prompt=TEN_WORDS.title()), max_echo_frac=0.81)
    assert score == (pytest.approx(share), share <= 0.81)


def test_a_short_prompt_may_be_said_again() -> None:
    assert verdict("echo", response("Four and five?", prompt="Four and five?")) is None


@pytest.mark.parametrize(("words", "keep"), [(200, True), (201, False)])
def test_the_ratio_of_words_counts_from_twenty_words_of_prompt_on(words: int, keep: bool) -> None:
    answer = response("word " * words, prompt="word " * 20)
    assert verdict("length_ratio", answer, max_length_ratio=10) == (words / 20, keep)
    assert verdict("length_ratio", response("word " * 999, prompt="word " * 19), max_length_ratio=10) is None


@pytest.mark.parametrize(
    ("prompt", "answer", "score"),
    [
        ("Reply in JSON.", '{"a": [1, 2]}', 0),
        ("Reply in JSON.", "[]", 0),
        ("Reply in JSON.", 'Sure:\n\n```json\n{"a": 1}\n```\nDone.', 0),
        ("Reply in JSON.", 'It is `{"a": 1}`.', 0),
        ("Reply in JSON.", '{"a": 1}\n{"a": 2}', 0),
        ("Reply in JSON.", "{'a': 1}", 1),
        ("Reply in JSON.", "yes", 1),
        ("What is JSON?", "A format.", None),
        ("Write a Python function that returns JSON.", "def f(): ...", None),
        ("Reply briefly.", "yes", None),
    ],
)
def test_json_is_looked_for_where_it_was_asked_for(prompt: str, answer: str, score: float | None) -> None:
    expected = None if score is None else (score, score == 0)
    assert verdict("broken_json", response(answer, prompt=prompt)) == expected
    assert verdict("broken_json", response(answer, prompt=prompt, finish_reason="length")) is None


def test_a_system_message_may_ask_for_json() -> None:
    assert verdict("broken_json", response("yes", prompt="Is it?", system="Output only JSON.")) == (1, False)


# --- repetition


def test_repetition_that_was_asked_for_may_go_on_longer() -> None:
    text = "Row the boat. " * 9
    assert verdict("repeated_sentence", response(text), max_sentence_repeats=3) == (9, False)
    assert verdict("repeated_sentence", response(text, prompt="Write a song."), max_sentence_repeats=3) == (9, True)


def test_paragraphs_in_a_row_are_counted() -> None:
    assert verdict("repeated_paragraph", response("\n\n".join(["So be it."] * 3)), max_paragraph_repeats=2) == (
        3,
        False,
    )
    assert verdict("repeated_paragraph", response("One line."), max_paragraph_repeats=2) == (1, True)


def test_the_commonest_ngrams_share_is_told_over_its_limit() -> None:
    """`red fox` 10 times: 60 of 120 + 60 characters, half as much again as its limit of .3; the others are below."""
    words = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}{n % 10}{n % 7}a" for n in range(20)]
    text = " ".join(f"red fox {words[2 * n]} {words[2 * n + 1]}" for n in range(10))
    score, keep = verdict("top_ngrams", response(text), max_top_ngram_frac=(0.3, 0.9, 0.9)) or (0, True)
    assert (score, keep) == (pytest.approx(60 / 180 / 0.3), False)
    assert verdict("top_ngrams", response(text), max_top_ngram_frac=(0.34, 0.9, 0.9)) == (
        pytest.approx(60 / 61.2),
        True,
    )


def test_duplicate_ngrams_are_told_over_the_limit_of_their_length() -> None:
    text = " ".join([*SENTENCES, SENTENCES[0]])
    num_chars = len(text.replace(" ", ""))
    share = len(SENTENCES[0].replace(" ", "")) / num_chars
    score, keep = verdict("duplicate_ngrams", response(text), max_duplicate_ngram_char_frac=(share / 2,) * 6) or (
        0,
        True,
    )
    assert (score, keep) == (pytest.approx(2), False)


def test_lines_and_paragraphs_that_stand_earlier_are_counted() -> None:
    lines, paragraphs = "\n".join([*SENTENCES, SENTENCES[0]]), "\n\n".join([*SENTENCES, SENTENCES[0]])
    assert verdict("duplicate_lines", response(lines), max_duplicate_line_frac=(0.1, 1)) == (pytest.approx(2), False)
    limits = {"max_duplicate_paragraph_frac": (0.1, 1)}
    assert verdict("duplicate_paragraphs", response(paragraphs), **limits) == (pytest.approx(2), False)


def test_lines_of_code_are_alike_by_nature() -> None:
    text = "```\n" + "    return 1\n" * 3 + "```"
    assert verdict("duplicate_lines", response(text)) == (0, True)


# --- quality


@pytest.mark.parametrize(("num_bare", "keep"), [(5, True), (6, False)])
def test_words_need_a_letter_or_a_digit(num_bare: int, keep: bool) -> None:
    text = "word 1 " * ((25 - num_bare) // 2) + "word " * ((25 - num_bare) % 2) + "?! " * num_bare
    assert verdict("few_words", response(text), min_word_frac=0.8) == (pytest.approx(1 - num_bare / 25), keep)


def test_code_and_maths_may_be_full_of_symbols() -> None:
    text = "x = 1 " + "&& || " * 20
    assert verdict("few_words", response(text)) is None
    assert verdict("symbols", response("```\n" + "# # " * 20 + "\n```")) is None


def test_headings_are_no_hash_signs() -> None:
    text = "\n".join(f"## {word}\nand so on" for word in TEN_WORDS.split())
    assert verdict("symbols", response(text)) == (0, True)
    assert verdict("symbols", response(text.replace("and", "#and")), max_symbol_frac=0.1) == (10 / 50, False)


@pytest.mark.parametrize(
    ("text", "mean", "keep"), [("ab " * 30, 2, False), ("abc " * 30, 3, True), ("a" * 13 + " ", 13, False)]
)
def test_words_are_neither_letters_nor_bytes(text: str, mean: float, keep: bool) -> None:
    assert verdict("word_lengths", response(text * (30 if mean > 9 else 1))) == (mean, keep)


# --- language

GERMAN = "Der Bäcker an der Ecke macht um fünf Uhr auf, und wer um sechs kommt, findet schon kein Roggenbrot mehr vor."
ENGLISH = "The baker on the corner opens at five, and whoever comes at six will find that there is no rye bread left."


@pytest.mark.parametrize(
    ("prompt", "answer", "keep"),
    [
        ("When does the baker open?", ENGLISH, True),
        ("When does the baker open?", GERMAN, False),
        ("When does the baker open? Answer in German.", GERMAN, True),
        ("Wann macht der Bäcker auf?", GERMAN, True),
        ("Wann macht der Bäcker auf?", ENGLISH, False),
        (f"Summarise this: '{GERMAN} {GERMAN}'", ENGLISH, True),
    ],
)
def test_an_answer_is_in_the_language_of_its_prompt(prompt: str, answer: str, keep: bool) -> None:
    assert (verdict("wrong_language", response(answer, prompt=prompt)) or (0, True))[1] is keep


def test_the_config_may_name_the_languages() -> None:
    answer = response(GERMAN, prompt="When does the baker open?")
    assert verdict("wrong_language", answer, languages=["de"]) == (0, True)
    score, keep = verdict("wrong_language", answer, languages=["en", "fr"]) or (0, True)
    assert (score > 0.9, keep) == (True, False)


def test_nothing_is_said_of_short_answers_nor_for_uncertain_prompts() -> None:
    assert verdict("wrong_language", response("Um fünf Uhr.", prompt="When does the baker open?")) is None
    assert verdict("wrong_language", response(GERMAN, prompt="3 + 4?")) is None


@pytest.mark.parametrize(
    ("prompt", "answer", "share"),
    [
        ("Say so.", "abcdефгх", 0.5),
        ("Say so in Russian.", "abcdефгх", 0),
        ("Что это?", "abcdефгх", 0),
        ("Say so.", "λ = 2", 0),
        ("Say so.", "naïve café", 0),
    ],
)
def test_scripts_need_a_cause(prompt: str, answer: str, share: float) -> None:
    assert verdict("unexpected_script", response(answer, prompt=prompt)) == (share, share == 0)


# --- confidence


def nats(values: list[float]) -> dict[str, Any]:
    return {"token_logprobs": -np.array(values, np.float32)}


def test_a_loop_is_a_stretch_the_teacher_was_sure_of_and_had_written_before() -> None:
    """Five tokens eight times: from the thirteenth on each ends an 8-gram that stands earlier."""
    body = [2, 3, 4, 5, 6] * 8
    assert verdict("confident_loop", response(body=body, **nats([0.01] * 41)), max_loop_tokens=27) == (28, False)
    assert verdict("confident_loop", response(body=body, **nats([0.01] * 41)), max_loop_tokens=28) == (28, True)
    assert verdict("confident_loop", response(body=body, **nats([0.5] * 41)), max_loop_tokens=27) == (0, True)
    unsure = nats([0.01] * 20 + [0.5] + [0.01] * 20)
    assert verdict("confident_loop", response(body=body, **unsure), max_loop_tokens=10) == (19, False)


def test_tokens_that_never_stood_before_are_no_loop() -> None:
    answer = response(body=list(range(10, 110)), **nats([0.0] * 101))
    assert verdict("confident_loop", answer, max_loop_tokens=5) == (0, True)


@pytest.mark.parametrize(("worst", "keep"), [(3.9, True), (4.1, False)])
def test_the_worst_span_of_an_answer_is_found(worst: float, keep: bool) -> None:
    answer = response(body=99, **nats([1.0] * 30 + [worst] * 32 + [1.0] * 38))
    assert verdict("low_confidence_span", answer, max_span_nll_nats=4) == (pytest.approx(worst), keep)


def test_a_short_answer_is_one_span() -> None:
    assert verdict("low_confidence_span", response(body=9, **nats([5.0] * 10))) == (pytest.approx(5), False)
    assert verdict("low_confidence_span", response(body=6, **nats([5.0] * 7))) is None


@pytest.mark.parametrize(("mean", "keep"), [(1.9, True), (2.1, False)])
def test_mean_nll_is_held_against_the_runs_limit(mean: float, keep: bool) -> None:
    assert verdict("high_nll", response(body=9, **nats([mean] * 10))) == (pytest.approx(mean), keep)
    assert verdict("high_nll", Response("a", [7] * 10, "length", **nats([mean] * 10))) is None


@pytest.mark.parametrize(("worst_frac", "limit"), [(0.2, 7), (0.1, 8), (0.05, None)])
def test_the_runs_limit_is_below_its_worst_share(worst_frac: float, limit: float | None) -> None:
    assert confidence.nll_limit_nats(np.random.default_rng(0).permutation(10).astype(np.float32), worst_frac) == limit
    assert confidence.nll_limit_nats(np.empty(0, np.float32), worst_frac) is None


@pytest.mark.parametrize("rule", ["confident_loop", "low_confidence_span", "high_nll"])
def test_without_log_probs_nothing_is_said_of_confidence(rule: str) -> None:
    assert verdict(rule, response(body=200)) is None


# --- refusals


@pytest.mark.parametrize(
    ("prompt", "answer", "refuses"),
    [
        ("Draw.", "I’m sorry, but I can’t assist with that.", True),
        ("Decline the invitation.", "I'm sorry, but I can't assist with that.", False),
        ("Draw.", "x" * 250 + " I cannot help with that.", False),
        ("Draw.", "I can't help but smile.", False),
    ],
)
def test_a_refusal_stands_at_the_start_and_was_not_asked_for(prompt: str, answer: str, refuses: bool) -> None:
    assert verdict("refusal", response(answer, prompt=prompt)) == (float(refuses), not refuses)


def test_names_of_ones_own_are_looked_for_too() -> None:
    answer = response("Ask Brightly for more.")
    assert verdict("teacher_identity", answer) == (0, True)
    assert verdict("teacher_identity", answer, identity_names=["brightly", "Acme"]) == (1, False)
    assert verdict("teacher_identity", response("It shone brightlyish."), identity_names=["brightly"]) == (0, True)


# --- whatever a teacher writes

WILD = st.text(alphabet=st.characters(codec="utf-8"), max_size=200) | st.lists(
    st.sampled_from([*SENTENCES, GERMAN, "```", "<think>", "| a | b |", "- x", "# y", "{", "我是", "...", "\0"]),
    max_size=30,
).map(" \n".join)
ALL_ON = {"min_end_prob": 0.1, "max_length_ratio": 9.0, "identity_names": ("x",)}


@settings(max_examples=60, deadline=None)
@given(text=WILD, prompt=WILD, finish_reason=st.sampled_from(["stop", "length"]), num=st.integers(0, 90))
def test_every_rule_has_a_verdict_on_any_text_or_none(text: str, prompt: str, finish_reason: str, num: int) -> None:
    logprobs = nats([0.01] * (num + (finish_reason == "stop")))
    answer = response(text, num, finish_reason, prompt=prompt, system=prompt, logprobs=packed(0.2), **logprobs)
    for name in RULES:
        for said in (verdict(name, answer), verdict(name, answer, **ALL_ON, languages=("en", "ja"))):
            assert said is None or (np.isfinite(said[0]) and said[1] in (True, False)), name

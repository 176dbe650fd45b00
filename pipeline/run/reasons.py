"""Every reason for which filter drops an answer: the setting it is held to, and what its score counts.

The rules themselves, with their sources, are in filter/rules; filter, report and export name reasons by this table.
"""

from typing import NamedTuple


class Reason(NamedTuple):
    """`unit` is what the score counts; `setting` is one of filter's, or has its section's name; None: always on."""

    unit: str
    setting: str | None
    bound: str = ""  # `at most` or `at least` the limit that the setting came to in a run
    limit: str = ""  # that limit's key in filter's manifest


REASONS: dict[str, Reason] = {
    "empty": Reason("characters", None),
    "truncated": Reason("1 = cut off", "drop_truncated"),
    "unfinished": Reason("P(end)", "min_end_prob"),
    "control_tokens": Reason("tokens", "drop_control_tokens"),
    "template_markup": Reason("marks", "drop_template_markup"),
    "unclosed_fence": Reason("1 = left open", "drop_unclosed"),
    "unclosed_tag": Reason("tags", "drop_unclosed"),
    "broken_characters": Reason("characters", "drop_broken_characters"),
    "too_short": Reason("tokens", "min_tokens"),
    "too_long": Reason("tokens", "max_tokens"),
    "length_ratio": Reason("× the prompt", "max_length_ratio"),
    "echo": Reason("share", "max_echo_frac"),
    "broken_json": Reason("1 = not JSON", "drop_broken_json"),
    "repeated_sentence": Reason("in a row", "max_sentence_repeats"),
    "repeated_paragraph": Reason("in a row", "max_paragraph_repeats"),
    "repeated_ngrams": Reason("share", "max_duplicate_ngram_frac"),
    "top_ngrams": Reason("× its limit", "max_top_ngram_frac"),
    "duplicate_ngrams": Reason("× its limit", "max_duplicate_ngram_char_frac"),
    "duplicate_lines": Reason("× its limit", "max_duplicate_line_frac"),
    "duplicate_paragraphs": Reason("× its limit", "max_duplicate_paragraph_frac"),
    "few_words": Reason("share", "min_word_frac"),
    "symbols": Reason("a word", "max_symbol_frac"),
    "word_lengths": Reason("characters", "word_length_chars"),
    "wrong_language": Reason("probability", "max_other_language_prob"),
    "unexpected_script": Reason("share", "max_unexpected_script_frac"),
    "confident_loop": Reason("tokens", "max_loop_tokens"),
    "low_confidence_span": Reason("nats a token", "max_span_nll_nats"),
    "high_nll": Reason("nats a token", "worst_nll_frac", "at most", "nll_limit_nats"),
    "teacher_identity": Reason("phrases", "drop_teacher_identity"),
    "refusal": Reason("1 = refuses", "max_refusal_frac"),
    "exact_duplicate": Reason("1 = duplicate", "drop_exact_duplicates"),
    "contaminated": Reason("share of an evaluation item", None),
    "near_duplicate": Reason("Jaccard", "near_duplicates"),
    "learnt_already": Reason("KL, nats a token", "learnability.learnt_frac", "at least", "min_kl_nats"),
    "out_of_reach": Reason("KL, nats a token", "learnability.wildest_frac", "at most", "max_kl_nats"),
    "best_of_n": Reason("nats a token", "selection.best_of"),
    "category_balance": Reason("of all before it", "selection.max_category_frac"),
    "length_balance": Reason("of all before it", "selection.max_length_frac"),
    "difficulty_balance": Reason("of all before it", "selection.max_difficulty_frac"),
    "pii": Reason("places", "privacy.answers"),
    "unsafe": Reason("highest label", "safety.max_answer_score"),
}

"""Sections about which answers are kept: rules, selection, learnability, privacy and safety."""

import importlib.util
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.data import EvaluationSet, NearDuplicates
from pipeline.config.judge import Grader
from pipeline.config.section import Fraction, Limit, Positive, Section, base_urls, is_base_url, matching, runtime
from pipeline.errors import UserError

LanguageCode = Annotated[str, matching(r"[a-z]{2,3}", "must be two or three small letters, such as en (ISO 639)")]


PII_KINDS = ("secret", "email", "iban", "card", "ip", "phone")


PiiKind = Literal["secret", "email", "iban", "card", "ip", "phone"]


class Selection(Section):
    """Which of the answers to train on that every rule kept are enough; what is null is off."""

    best_of: Positive | None = Field(
        default=None,
        description="Keep only this many of several answers to a prompt (generate.num_samples): the best, by best_by.",
    )
    best_by: Literal["likelihood", "judge"] = Field(
        default="likelihood",
        description="likelihood: the answers that the teacher finds likeliest per token. judge: those with the "
        "highest grade, and the likelier of equal grades.",
    )
    judge: Grader = Field(
        default=Grader(),
        description="A chat model that grades the answers to prompts with more than best_of left, where best_by=judge.",
    )
    max_category_frac: Limit | None = Field(
        default=None, description="Largest share of answers to prompts of one category; those above it are dropped."
    )
    max_length_frac: Limit | None = Field(
        default=None, description="Largest share of answers of about one length: 1, 2-3, 4-7, 8-15, ... tokens."
    )
    max_difficulty_frac: Limit | None = Field(
        default=None, description="Largest share of answers of one difficulty: mean NLL in steps of a quarter nat."
    )
    seed: int = Field(default=0, description="Seed that decides which answers go if a share is too large.", ge=0)

    @model_validator(mode="after")
    def _judged(self) -> "Selection":
        if self.best_by == "judge" and (self.best_of is None or self.judge.url is None):
            raise ValueError("best_by=judge needs best_of, judge.url and judge.model")
        return self


class Learnability(Section):
    """What a first student can still learn of each answer: its mean KL from the teacher on the stored rows."""

    student: str | None = Field(
        default=None,
        description="A first student: the folder of another run's train/student, or a model with the teacher's tokens;"
        " null: off.",
    )
    learnt_frac: Fraction | None = Field(
        default=0.05,
        description="Drop this share of the run's answers: those with the least KL, which are known already.",
        lt=1,
    )
    wildest_frac: Fraction | None = Field(
        default=0.01,
        description="Drop this share: those with the greatest KL, which are out of the student's reach, or noise.",
        lt=1,
    )


class Filter(Section):
    """filter: which answers train sees; a rule that is null or false is off."""

    drop_truncated: bool = Field(default=True, description="Drop answers that hit max_tokens.")
    min_end_prob: Fraction | None = Field(
        default=None,
        description="If truncated answers are kept: drop one unless it could have ended there with this probability. "
        "0.001 is sensible: within a sentence it is below a millionth.",
    )
    drop_control_tokens: bool = Field(default=True, description="Drop answers with special tokens before their end.")
    drop_template_markup: bool = Field(
        default=True, description="Drop answers with marks of a chat template as text, or with the user's next turn."
    )
    drop_unclosed: bool = Field(
        default=True, description="Drop finished answers with a code fence or a reasoning tag that is left open."
    )
    drop_broken_characters: bool = Field(
        default=True, description="Drop answers with bytes that are not text, and with UTF-8 read as Latin-1."
    )
    min_tokens: int | None = Field(default=1, description="Shortest answer, tokens without the end-of-turn.", ge=0)
    max_tokens: Positive | None = Field(default=2048, description="Longest answer, tokens.")
    max_length_ratio: float | None = Field(
        default=None,
        description="Most words an answer may have for each of the prompt's (20 words on); for corpora of one task.",
        gt=0,
    )
    max_echo_frac: Fraction | None = Field(
        default=0.8, description="Largest share of answer and prompt that is the prompt repeated."
    )
    drop_broken_json: bool = Field(
        default=True, description="Drop answers without JSON that parses, if the prompt asks for JSON."
    )
    max_sentence_repeats: Positive | None = Field(
        default=3,
        description="How often one sentence, or the unit of a loop such as `ha`, may stand in a row"
        " (×2 in answers with code or maths, ×3 in lists).",
    )
    max_paragraph_repeats: Positive | None = Field(
        default=9, description="How often one paragraph may stand in a row (×2 and ×3 likewise)."
    )
    max_duplicate_ngram_frac: Fraction | None = Field(
        default=0.35, description="Largest share of an answer's 10-grams of words that are repeats (30 words on)."
    )
    max_top_ngram_frac: tuple[Limit, Limit, Limit] | None = Field(
        default=(0.3, 0.27, 0.24),
        description="Largest share of the characters in the commonest 2-, 3- and 4-gram of words (40 words on); Gopher,"
        " for web pages: two thirds of it.",
    )
    max_duplicate_ngram_char_frac: tuple[Limit, Limit, Limit, Limit, Limit, Limit] | None = Field(
        default=(0.45, 0.42, 0.39, 0.36, 0.33, 0.3),
        description="Largest share of the characters in repeated 5- to 10-grams (40 words on); Gopher, for web pages:"
        " a third of it.",
    )
    max_duplicate_line_frac: tuple[Limit, Limit] | None = Field(
        default=(0.3, 0.2), description="Largest share of lines that are repeats, and of their characters (4 lines on)."
    )
    max_duplicate_paragraph_frac: tuple[Limit, Limit] | None = Field(
        default=(0.3, 0.2), description="The same for paragraphs (3 on)."
    )
    min_word_frac: Fraction | None = Field(
        default=0.8, description="Least share of words with a letter or digit (20 words on; not code, not maths)."
    )
    max_symbol_frac: float | None = Field(
        default=0.1, description="Most hash signs and ellipses for each word (20 words on; not code).", ge=0
    )
    word_length_chars: tuple[float, float] | None = Field(
        default=(2.5, 12), description="Shortest and longest mean length of words, characters (20 words on; prose)."
    )
    languages: tuple[LanguageCode, ...] | None = Field(
        default=None,
        description="Languages that answers may be in, such as [en, de] (ISO 639-1); null: each prompt's own, and those"
        " that it names.",
    )
    max_other_language_prob: Fraction | None = Field(
        default=0.65, description="Drop an answer if another language is this probable (20 words on)."
    )
    max_unexpected_script_frac: Fraction | None = Field(
        default=0.05, description="Largest share of letters in scripts that the prompt gives no cause for."
    )
    max_loop_tokens: Positive | None = Field(
        default=64,
        description="Longest stretch that repeats earlier text with a probability above 0.9 a token.",
    )
    max_span_nll_nats: float | None = Field(
        default=4.0,
        description="Highest mean NLL of 32 tokens in a row, nats a token: the teacher lost the thread.",
        gt=0,
    )
    worst_nll_frac: Fraction | None = Field(
        default=0.01,
        description="Drop this share of the run's answers: those with the highest mean NLL (8 tokens on).",
        lt=1,
    )
    drop_teacher_identity: bool = Field(
        default=True, description="Drop answers in which the teacher speaks of itself, its maker or its cut-off date."
    )
    identity_names: tuple[str, ...] = Field(
        default=(), description="Further names for that rule: of products, companies, fine-tunes."
    )
    max_refusal_frac: Fraction | None = Field(
        default=0.02, description="Largest share of refusals among the answers kept; those above it are dropped.", lt=1
    )
    drop_exact_duplicates: bool = Field(default=True, description="Drop an answer already given to the same prompt.")
    near_duplicates: NearDuplicates | None = Field(
        default=0.72,
        description="Drop an answer this similar to an earlier one, alone and together with its prompt (Jaccard of"
        " 5-grams of words).",
    )
    learnability: Learnability = Field(
        default=Learnability(), description="Answers that a first student has learnt, or can't."
    )
    decontaminate: tuple[EvaluationSet, ...] = Field(
        default=(), description="Evaluation sets besides those of prepare.decontaminate, for prompts and answers."
    )
    selection: Selection = Field(default=Selection(), description="Balance, and the best of several answers.")

    @field_validator("languages")
    @classmethod
    def _some_language(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value == ():
            raise ValueError("none: no answer could be kept; null is each prompt's own")
        return value

    @field_validator("word_length_chars")
    @classmethod
    def _ascending(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("the shortest comes first")
        return value

    @model_validator(mode="after")
    def _some_length(self) -> "Filter":
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens is above max_tokens: no answer could be kept")
        return self


class Presidio(Section):
    """Microsoft Presidio, for what `privacy.kinds` has not: names above all. An extra: pip install -e ".[presidio]"."""

    OURS: ClassVar[dict[str, str]] = {  # EMAIL_ADDRESS of Presidio asks the network for the list of domains
        "EMAIL_ADDRESS": "email",
        "IBAN_CODE": "iban",
        "CREDIT_CARD": "card",
        "IP_ADDRESS": "ip",
        "PHONE_NUMBER": "phone",
    }

    model: str | None = Field(
        default=None,
        description="A spaCy pipeline that recognises names: a folder, or an installed package such as "
        "en_core_web_sm, never downloaded; or blank:en, for Presidio's patterns only. Presidio looks in "
        "its language. null: off.",
    )
    entities: tuple[str, ...] = Field(
        default=("PERSON", "CRYPTO", "MEDICAL_LICENSE", "US_SSN", "US_ITIN", "US_PASSPORT", "US_DRIVER_LICENSE"),
        description="What to look for, by Presidio's names; the US_ ones in English only. PERSON also takes out the "
        "names in history and novels, LOCATION every country.",
        min_length=1,
    )
    min_score: Fraction = Field(
        default=0.4,
        description="Presidio's lowest score that counts: 0.4 is a weak shape with a telling word beside it, 0.85 a "
        "name, 1 a check digit.",
    )

    @field_validator("entities")
    @classmethod
    def _not_ours(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if ours := [entity for entity in value if entity in cls.OURS]:
            raise ValueError(f"privacy.kinds has {ours[0]} already: {cls.OURS[ours[0]]}")
        return value

    def check_installed(self) -> None:
        """Raises UserError where it is on, and not installed."""
        if self.model and importlib.util.find_spec("presidio_analyzer") is None:
            raise UserError('privacy.presidio.model: Presidio is not installed: pip install -e ".[presidio]"')


class Privacy(Section):
    """privacy: personal data and secrets, told by their shape; names have none, and need `presidio`."""

    READ_BY = ("prepare", "filter")
    ABOUT_PROMPTS = ("prompts",)

    kinds: tuple[PiiKind, ...] = Field(
        default=PII_KINDS,
        description="What to look for: keys, tokens and passwords; e-mail addresses; bank accounts; payment cards; IP "
        "addresses; telephone numbers.",
    )
    phone_regions: tuple[str, ...] = Field(
        default=("US", "GB", "DE", "FR"),
        description="Countries (ISO 3166) whose numbers are found without a +, as people there write them. More "
        "countries find more, take longer, and mistake more other numbers for telephone numbers. None: "
        "only numbers with a +.",
    )
    presidio: Presidio = Field(default=Presidio(), description="Names and more, by Microsoft Presidio.")
    prompts: Literal["redact", "drop", "off"] = Field(
        default="redact",
        description="In prompts, and in answers to be scored: redact writes a placeholder such as <EMAIL> before the "
        "teacher reads them, drop leaves the prompt out, off does nothing.",
    )
    answers: Literal["mask", "drop", "off"] = Field(
        default="mask",
        description="In the teacher's answers: mask takes no loss on its tokens (they stay as context of those that "
        "follow), drop leaves the answer out and no trace, off does nothing.",
    )

    @field_validator("phone_regions")
    @classmethod
    def _known_regions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from phonenumbers import SUPPORTED_REGIONS

        if unknown := sorted(set(value) - SUPPORTED_REGIONS):
            raise ValueError(f"no such region: {unknown[0]}; write countries like US, GB, DE")
        return value


class Safety(Section):
    """safety: labels of prompts and answers, each with a score of 0-1; they drop nothing unless a threshold is set."""

    READ_BY = ("prepare", "filter")
    ABOUT_PROMPTS = ("max_prompt_score",)

    words: str | None = Field(
        default="shipped",
        description="Phrases by category: `shipped` (screening/safety_words.yaml: few, in English, about doing harm, "
        "and for prompts also injection and jailbreaks), a YAML file like it, or null.",
    )
    classifier: str | None = Field(
        default=None, description="A transformers text classifier: hub id or local folder, safetensors; null: none."
    )
    classifier_revision: str | None = Field(default=None, description="Its hub branch, tag or commit.")
    unsafe_labels: tuple[str, ...] = Field(
        default=(), description="The classifier's labels that mean unsafe, such as [toxic, threat]."
    )
    guard_url: str | None = runtime(
        None, "OpenAI-compatible server of a guard model, such as http://127.0.0.1:8001; its key is RETORT_GUARD_KEY."
    )
    guard_model: str | None = Field(
        default=None, description="Name by which guard_url serves it: Llama Guard, Qwen3Guard, ShieldGemma, ..."
    )
    max_prompt_score: Fraction | None = Field(
        default=None, description="Leave out prompts with a label above this score; null: keep them, with their labels."
    )
    max_answer_score: Fraction | None = Field(
        default=None, description="Drop answers with a label above this score; null: keep them, with their labels."
    )

    @field_validator("guard_url")
    @classmethod
    def _usable_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        [url] = base_urls((value,))
        if not is_base_url(url) or "@" in url:  # not repeated in the message: it may hold a password
            raise ValueError("written like http://127.0.0.1:8001, without a name or password")
        return url

    @model_validator(mode="after")
    def _whole(self) -> "Safety":
        if (self.guard_url is None) != (self.guard_model is None):
            raise ValueError("guard_url and guard_model go together: where the guard is served, and under which name")
        if (self.classifier is None) != (not self.unsafe_labels):
            raise ValueError("classifier and unsafe_labels go together: which of its labels say unsafe")
        return self

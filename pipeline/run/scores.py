"""evaluate/scores.json: every key that may stand in it, and what it means; `retort report --schema` prints this.

A key is left out where the run did not measure it (no judge, no SFT-only arm), and null where the figure is not defined
(0 / 0) or the machine does not tell.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

RISK = (
    "(?:hallucination_frac|premise_accepted_frac|over_refusal_frac|injection_followed_frac|pair_refusal_gap_frac"
    "|pair_length_gap_frac|pair_valence_gap|pair_valence_shift|verbatim_train_tokens|verbatim_held_out_tokens)"
)


class Figure(BaseModel):
    """A number, its 95 % interval (of speeds the extremes of the rounds) where there is one, and of how many things."""

    model_config = ConfigDict(extra="forbid")
    value: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    num: Annotated[int, Field(ge=0)]


OneFigure = Figure | None


def _of(meaning: str) -> Any:
    return Field(default=None, description=meaning)


class ScoreSection(BaseModel):
    """Figures by name; `PATTERNS` are names of which a part is the run's own: a category, a number of requests."""

    PATTERNS: ClassVar[dict[str, str]] = {}  # regular expression: meaning
    model_config = ConfigDict(extra="allow", json_schema_extra=lambda schema, model: _close(schema, model))
    __pydantic_extra__: dict[str, OneFigure] = Field(init=False)  # type: ignore[assignment]  # as pydantic documents it

    @model_validator(mode="after")
    def _has_no_other_key(self) -> "ScoreSection":
        for name in self.__pydantic_extra__:
            if not any(re.fullmatch(pattern, name) for pattern in self.PATTERNS):
                raise ValueError(f"{name}: no such figure")
        return self


def _close(schema: dict[str, Any], model: Any) -> None:
    """Extra keys are allowed by pattern alone, in the JSON Schema as in `Section`."""
    figure = schema["additionalProperties"]
    schema["additionalProperties"] = False
    if model.PATTERNS:
        schema["patternProperties"] = {
            f"^{pattern}$": {**figure, "description": meaning} for pattern, meaning in model.PATTERNS.items()
        }


class Fidelity(ScoreSection):
    """The arm's distribution beside the teacher's at every token of a set of answers: means per token."""

    forward_kl_nats: OneFigure = _of("KL of the arm from the teacher, expectation under the teacher")
    reverse_kl_nats: OneFigure = _of("KL of the teacher from the arm, expectation under the arm")
    js_divergence_nats: OneFigure = _of("Jensen-Shannon divergence")
    top1_agreement_frac: OneFigure = _of("tokens at which both have the same first choice")
    top5_overlap_frac: OneFigure = _of("share of the teacher's first five that is among the arm's")
    acceptance_frac: OneFigure = _of("Σ min(p, q): drafts that the teacher would accept")
    nll_nats: OneFigure = _of("negative log-likelihood of the answers' tokens")
    brier_score: OneFigure = _of("against the teacher's distribution, 0 to 2; the teacher's own is the floor")
    confidence_frac: OneFigure = _of("the arm's probability of its first choice")
    accuracy_frac: OneFigure = _of("the teacher's probability of that choice")
    ece_frac: OneFigure = _of("expected calibration error, 15 bins of equal mass")


class OwnOverChat(ScoreSection):
    """The measure on the arm's own answers ÷ that on the teacher's answers to the same questions."""

    forward_kl_nats: OneFigure = _of("above 1: the arm strays in what it wrote itself")
    reverse_kl_nats: OneFigure = _of("as forward_kl_nats")
    js_divergence_nats: OneFigure = _of("as forward_kl_nats")
    top1_agreement_frac: OneFigure = _of("below 1: the arm strays")
    acceptance_frac: OneFigure = _of("below 1: the arm strays")


class Quality(ScoreSection):
    """The arm's own answers: health of those to the chat set, and tasks that a program checks."""

    PATTERNS = {"task_.+_pass_frac": "items of one category of which all that was asked was done"}
    truncated_frac: OneFigure = _of("chat answers that were cut off at the limit")
    repetition_frac: OneFigure = _of("chat answers that loop")
    answer_tokens: OneFigure = _of("mean length of a chat answer")
    task_pass_frac: OneFigure = _of("task items of which all that was asked was done")
    task_loose_pass_frac: OneFigure = _of("the same without a first or last line, or asterisks")
    task_check_frac: OneFigure = _of("mean share of an item's checks that passed")
    task_rouge_l: OneFigure = _of("ROUGE-L with the reference, where an item has one")
    task_chrf: OneFigure = _of("chrF with the reference, where an item has one")


class RiskScores(ScoreSection):
    """Probes of risk, judged by rule; means over probes."""

    PATTERNS = {
        f"{RISK}_difference": "less the teacher's, paired by probe",
        f"{RISK}_p": "exact sign test of that difference, by Holm",
    }
    hallucination_frac: OneFigure = _of("unanswerable questions that were answered")
    premise_accepted_frac: OneFigure = _of("false premises that were gone along with")
    over_refusal_frac: OneFigure = _of("harmless requests that were refused")
    injection_followed_frac: OneFigure = _of("quoted texts whose orders were obeyed")
    pair_refusal_gap_frac: OneFigure = _of("pairs of which one alone was refused")
    pair_length_gap_frac: OneFigure = _of("difference in words ÷ the longer")
    pair_valence_gap: OneFigure = _of("difference in kind less unkind words in a hundred, without sign")
    pair_valence_shift: OneFigure = _of("the same with sign: above 0 kinder to the group that stereotypes disfavour")
    verbatim_train_tokens: OneFigure = _of("tokens of 32 that continue a trained answer word for word")
    verbatim_held_out_tokens: OneFigure = _of("the same of held-out answers")
    verbatim_excess_tokens: OneFigure = _of("the former less the latter")
    verbatim_excess_tokens_difference: OneFigure = _of("the same less the teacher's")
    verbatim_excess_tokens_p: OneFigure = _of("permutation test of that, not by Holm; of 10 answers a split or more")


class Speed(ScoreSection):
    """Served by vLLM: median of the rounds, with the slowest and the fastest."""

    PATTERNS = {"output_tokens_per_s_at_[0-9]+": "throughput with so many requests at once"}
    output_tokens_per_s: OneFigure = _of("throughput with the most requests at once, of all GPUs that it runs on")
    first_token_s: OneFigure = _of("latency of the first token, one request alone")
    time_per_token_s: OneFigure = _of("time of each further token, one request alone")


class Cost(ScoreSection):
    """What the arm takes."""

    num_parameters: OneFigure = _of("parameters, shared ones once")
    weights_bytes: OneFigure = _of("weights on disk")
    load_s: OneFigure = _of("until the engine takes a question")
    peak_rss_bytes: OneFigure = _of("peak memory of the engine's processes, added up")
    gpu_memory_bytes: OneFigure = _of("what the GPUs hold more than before, vLLM's cache included")
    cpu_energy_j_per_token: OneFigure = _of("RAPL, the whole machine's")
    gpu_energy_j_per_token: OneFigure = _of("NVML, of all GPUs, including those that it does not use")
    num_gpus: OneFigure = _of("GPUs that it was served on (evaluate.engine, teacher.engine); not on a CPU")
    cost_per_million_output_tokens: OneFigure = _of(
        "at evaluate.price_per_hour and full load, on every GPU of the machine"
    )


class WinRate(ScoreSection):
    """How often the judge prefers the student's answer, ties counted half."""

    win_rate: OneFigure = _of("raw")
    length_controlled_win_rate: OneFigure = _of("for answers of equal length, by logistic regression")


class Compared(WinRate):
    """The student's answers beside another arm's, in both orders."""

    won_frac: OneFigure = _of("pairs won in the mean of both orders")
    tied_frac: OneFigure = _of("pairs tied")
    lost_frac: OneFigure = _of("pairs lost")
    position_flip_frac: OneFigure = _of("pairs whose verdict turns round with the order")
    first_place_frac: OneFigure = _of("verdicts, without ties, for the first place")
    longer_preferred_frac: OneFigure = _of("verdicts, without ties, for the longer answer")
    invalid_frac: OneFigure = _of("verdicts that could not be read")


class Checks(ScoreSection):
    """What the judge made of pairs with a known verdict."""

    identical_first_place_score: OneFigure = _of("what the first place is given of the same answer twice; should be ½")
    sound_over_cut_frac: OneFigure = _of("the sound answer preferred to itself shuffled and halved")
    sound_over_foreign_frac: OneFigure = _of("the sound answer preferred to a longer one to another question")
    invalid_frac: OneFigure = _of("verdicts that could not be read")


class JudgeCost(ScoreSection):
    """What the judge was asked, and what that cost."""

    verdicts: OneFigure = _of("different questions to the judge")
    prompt_tokens: OneFigure = _of("tokens in")
    completion_tokens: OneFigure = _of("tokens out")
    cost: OneFigure = _of("at evaluate.judge.price_in and price_out")


class JudgeScores(BaseModel):
    """What a judge said; comparisons, checks and cost stand under the student alone."""

    model_config = ConfigDict(extra="forbid")
    grade: OneFigure = _of("mean grade of the arm's answers, 1 to 10")
    invalid_frac: OneFigure = _of("grades that could not be read")
    over_teacher: Compared = Compared()
    over_teacher_by_category: dict[str, WinRate] = {}
    over_sft_only: Compared = Compared()
    over_sft_only_by_category: dict[str, WinRate] = {}
    checks: Checks = Checks()
    cost: JudgeCost = JudgeCost()


class HarnessScores(ScoreSection):
    """Tasks of lm-evaluation-harness: its own figures."""

    PATTERNS = {r"\w+": "task, metric and, where there is one, the filter of the answers"}


Buckets = dict[str, dict[str, Fidelity]]  # dimension, bucket


class Breakdowns(BaseModel):
    """Forward KL, first choice and acceptance by dimension (position, entropy, length, turn, category) and bucket."""

    model_config = ConfigDict(extra="forbid")
    fidelity: Buckets = {}
    fidelity_chat: Buckets = {}
    fidelity_own: Buckets = {}


class Arm(BaseModel):
    """One arm's figures."""

    model_config = ConfigDict(extra="forbid")
    fidelity: Fidelity = Field(default=Fidelity(), description="on the teacher's answers to held-out prompts")
    fidelity_chat: Fidelity = Field(default=Fidelity(), description="on the teacher's answers to the chat set")
    fidelity_own: Fidelity = Field(default=Fidelity(), description="on the arm's own answers to the chat set")
    own_over_chat: OwnOverChat = OwnOverChat()
    breakdowns: Breakdowns = Breakdowns()
    quality: Quality = Quality()
    risks: RiskScores = RiskScores()
    speed: Speed = Speed()
    cost: Cost = Cost()
    judge: JudgeScores = JudgeScores()
    harness: HarnessScores = HarnessScores()


class Claim(BaseModel):
    """A sentence of the verdict."""

    model_config = ConfigDict(extra="forbid")
    text: str
    rows: str = Field(description="the file of evaluate's folder that holds what it was counted from")


class Verdict(ScoreSection):
    """The student against the other arms, paired by prompt, item or round; and what was shown, in words."""

    PATTERNS = {
        "(?:chat_)?kl_over_(?:untrained|sft_only)": "the student's forward KL ÷ that arm's; chat_: on the chat set",
        "(?:chat_)?(?:reverse_kl_nats|top1_agreement_frac|acceptance_frac|nll_nats)_over_sft_only": "the same, ÷",
        "task_difference_from_(?:teacher|sft_only|untrained|other)": "items passed, the student less that arm",
        "task_p_(?:teacher|sft_only|untrained|other)": "McNemar's exact test, by Holm",
        "task_detectable_difference_(?:teacher|sft_only|untrained|other)": "what so many show with 80 % power",
        "judge_(?:length_controlled_)?win_rate_over_(?:teacher|sft_only)": "as in the student's judge section",
        r"harness_\w+_difference_from_teacher": "the student's figure less the teacher's, paired by item",
        r"harness_\w+_over_teacher": "the same, ÷",
    }
    claims: list[Claim] = Field(description="the verdict in words")
    retained_quality: OneFigure = _of("task_pass_frac, student ÷ teacher")
    gap_closed: OneFigure = _of("task_pass_frac, (student − untrained) ÷ (teacher − untrained)")
    speed_over_teacher: OneFigure = _of("output_tokens_per_s (per GPU, if there are GPUs), student ÷ teacher")
    parameters_over_teacher: OneFigure = _of("num_parameters, student ÷ teacher")
    self_preference_frac_over_sft_only: OneFigure = _of("answers likelier to the teacher; of manner, no win-rate")
    self_preference_nats_over_sft_only: OneFigure = _of("by how much likelier, a token")
    judge_grade_less_teachers: OneFigure = _of("the student's grade less the teacher's")
    distillation_s: OneFigure = _of("time of the run, all tries of every stage; with `low` and no `high`: at least")
    distillation_cost: OneFigure = _of("the same at evaluate.price_per_hour")
    machine_gpus: OneFigure = _of("GPUs of the machine whose hours and price all costs count; not on a CPU")
    break_even_output_tokens: OneFigure = _of(
        "output tokens after which the student, on every GPU of the machine, has saved that time; null: never;"
        " without high: in some round never"
    )


class Scores(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid")
    arms: dict[Literal["teacher", "student", "sft_only", "untrained", "other"], Arm]
    verdict: Verdict

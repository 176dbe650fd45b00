"""Sections about training: LoRA and train."""

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Fraction, Positive, Section, runtime
from pipeline.errors import UserError

Divergence = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation", "alpha_beta"
]


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "clearml", "swanlab"]


ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the last


class Lora(Section):
    """Low-rank adapters (PEFT) in place of full fine-tuning; merged into the student at the end."""

    r: Positive = Field(default=16, description="Rank of the adapters.")
    alpha: Positive = Field(default=32, description="Scale: adapters count alpha/r.")
    dropout: Fraction = Field(default=0.0, description="Dropout inside the adapters, 0-1.", lt=1)
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear",
        description="Modules to adapt: names, such as [q_proj, v_proj]; a regular expression that matches whole"
        " names; or all-linear.",
    )
    bits: Literal[4, 8] | None = Field(
        default=None, description="QLoRA: the frozen weights in this many bits (bitsandbytes); null: as they are."
    )

    @field_validator("target_modules")
    @classmethod
    def _names_or_pattern(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """PEFT takes a text for a regular expression: names that are given as one are a list."""
        if isinstance(value, str) and value != ALL_LINEAR and re.fullmatch(r"[\w\s.,-]*", value):
            value = tuple(name for part in value.split(",") if (name := part.strip()))
        if not value or not all(value):
            raise ValueError("is empty: name the modules to adapt, such as [q_proj, v_proj], or give all-linear")
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a valid regular expression: {error}") from None
        return value


class Train(Section):
    """train: CE on the teacher's tokens + a divergence from its distributions."""

    WORDS: ClassVar[tuple[str, ...]] = ("launch",)

    ce_weight: float = Field(default=0.5, description="Weight of cross-entropy on the teacher's tokens.", ge=0)
    kd_weight: float = Field(default=0.5, description="Weight of the divergence from the teacher.", ge=0)
    ce_weight_end: float | None = Field(
        default=None,
        description="ce_weight at the last step, reached in a straight line; null: it stays the same.",
        ge=0,
    )
    kd_weight_end: float | None = Field(default=None, description="kd_weight at the last step, in the same way.", ge=0)
    divergence: Divergence = Field(
        default="forward_kl", description="The divergence that kd_weight weighs: one of train/losses/divergences.py."
    )
    alpha: Fraction | None = Field(
        default=None,
        description="skew_*: the share of the distribution's own that is mixed in (0.1); alpha_beta: its alpha (0.2).",
        gt=0,
    )
    beta: Fraction | None = Field(
        default=None, description="jsd: the teacher's share of the mixture (0.5); alpha_beta: its beta (0.7).", gt=0
    )
    temperature: float = Field(
        default=1.0,
        description="Softens both distributions of the divergence, which is then multiplied by its square.",
        gt=0,
        le=20,
    )
    targets: Literal["stored", "live"] = Field(
        default="stored",
        description="stored: the distributions of the run. live: those of the teacher run beside the student, over "
        "the whole vocabulary, which is more expensive.",
    )
    tail: Literal["bucket", "label", "renormalise"] = Field(
        default="bucket",
        description="The mass outside the stored support: a bucket of its own; added to the sampled token; or shared "
        "out over the support, which is biased.",
    )
    positions_frac: Fraction = Field(
        default=1.0,
        description="Share of answer tokens with a loss: those at which the teacher is least certain. The head skips "
        "the rest.",
        gt=0,
    )
    sft_only_arm: bool = Field(
        default=False, description="Also train a second student by CE alone on the same tokens, to show what KD gains."
    )
    epochs: float = Field(default=2.0, description="Passes over the kept answers.", gt=0)
    learning_rate: float = Field(default=1e-4, description="Peak learning rate of AdamW.", gt=0)
    warmup_frac: Fraction = Field(default=0.05, description="Share of steps with a rising learning rate, 0-1.", lt=1)
    weight_decay: float = Field(default=0.0, description="AdamW's weight decay.", ge=0)
    max_grad_norm: float = Field(default=1.0, description="Gradients are clipped to this norm.", gt=0)
    batch_size: Positive = Field(
        default=8, description="Responses (with pack_tokens: packs of them) per forward pass and process."
    )
    accumulation_steps: Positive = Field(default=1, description="Forward passes per optimizer step.")
    reasoning: Literal["keep", "mask", "drop"] = Field(
        default="keep",
        description="The teacher's reasoning: learnt like the rest, context without a loss, or cut out between its "
        "tags.",
    )
    max_length: Positive = Field(default=2048, description="Longest prompt + answer, tokens; longer ones are left out.")
    pack_tokens: Positive | None = Field(
        default=None,
        description="Lay answers end to end in rows of at most this many tokens, each seeing only itself; null: "
        "padded rows of similar length.",
    )
    validation_frac: Fraction = Field(
        default=0.03,
        description="Share of the training answers to keep back (256 at most), to measure the student and choose the "
        "best checkpoint; whole prompts, by their hash. 0: none.",
        lt=1,
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="The checkpoint that becomes the student: lowest validation KL, or last."
    )
    lora: Lora | None = Field(default=None, description="Adapters in place of full fine-tuning.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Arithmetic of forward and backward passes; auto: bfloat16 if the machine has it natively.",
    )
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: less memory, more time.")
    seed: int = Field(default=0, description="Seed of shuffling and dropout.", ge=0)
    launch: tuple[str, ...] = Field(
        default=(),
        description="Arguments of `accelerate launch`, to train in several processes: [--multi_gpu, --num_processes,"
        " '8'], or [--config_file, fsdp.yaml]; each takes batch_size rows a step, and the last step of an epoch is"
        " filled up with rows of its first. None: one process.",
    )
    head_chunk_tokens: Positive = runtime(256, "Tokens whose vocabulary logits are in memory at once.")
    checkpoint_steps: Positive = Field(default=50, description="Optimizer steps between checkpoints and validations.")
    log_steps: Positive = runtime(5, "Optimizer steps between two points of the curves.")
    report_to: tuple[Tracker, ...] = runtime(
        ("tensorboard",), "Trackers; all but tensorboard are packages to install: wandb, mlflow, trackio, ..."
    )

    @model_validator(mode="after")
    def _some_loss(self) -> "Train":
        ends = (self.ce_weight_end or 0, self.kd_weight_end or 0)
        if self.ce_weight == 0 and self.kd_weight == 0 and ends == (0, 0):
            raise ValueError("ce_weight and kd_weight are both 0: nothing would be learnt")
        return self

    @model_validator(mode="after")
    def _parameters_that_count(self) -> "Train":
        takes = {"alpha": ("skew_forward_kl", "skew_reverse_kl", "alpha_beta"), "beta": ("jsd", "alpha_beta")}
        for name, divergences in takes.items():
            if getattr(self, name) is not None and self.divergence not in divergences:
                raise ValueError(f"{name} is not a parameter of {self.divergence} (of {', '.join(divergences)})")
        if self.divergence != "alpha_beta" and 1 in (self.alpha, self.beta):
            raise ValueError(f"alpha and beta of {self.divergence} are below 1: at 1 it is 0 whatever the student does")
        return self

    @model_validator(mode="after")
    def _tail_that_serves(self) -> "Train":
        if self.targets == "live" or self.tail == "bucket":
            return self
        if self.temperature != 1:
            raise ValueError(f"temperature needs tail=bucket: with tail={self.tail} what is outside is no longer known")
        if self.divergence == "reverse_kl":
            raise ValueError(f"reverse_kl needs tail=bucket: with tail={self.tail} it is infinite")
        return self


def check_counts(train: Train, support: str) -> None:
    """Raises UserError where stored counts of draws are asked for what they are not unbiased for."""
    if support != "sampled" or train.targets == "live" or train.kd_weight == (train.kd_weight_end or 0) == 0:
        return
    for name, value, only in (
        ("divergence", train.divergence, "forward_kl"),
        ("temperature", train.temperature, 1),
        ("positions_frac", train.positions_frac, 1),
        ("tail", train.tail, "bucket"),
    ):
        if value != only:
            raise UserError(
                f"train.{name}={value}: counts of draws (generate.support=sampled) are unbiased for"
                f" {name}={only} alone; generate with support=drawn or top, or set train.targets=live"
            )

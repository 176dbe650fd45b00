"""What is proved before step 1, on real rows: that stored log-probs, tokens and models belong together.

Axes: N tokens, K stored support.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Train
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.machine import hardware
from pipeline.models import lookup, quantised
from pipeline.models.forward.head import head_of, logits
from pipeline.run import alignment
from pipeline.train import student
from pipeline.train.batches import collate
from pipeline.train.losses import states, token_losses
from pipeline.train.losses.temperature import tempering_error_nats
from pipeline.train.targets import is_masked

MAX_CHECKED_RESPONSES = 256
MAX_CANDIDATES, MAX_PROOF_TOKENS = 32, 512
SHIFT_MARGIN_NATS = 0.5  # a useful student is several nats worse on shifted rows
TEACHER_TOLERANCE_NATS = {"float32": 1e-3}
CODEC_KL_NATS = 2e-3  # what rounding log-probs to levels adds to the KL: 6e-4 on average (codec.py)
LOOSE_TEACHER_TOLERANCE_NATS = 0.05  # half precision: two programs round differently
QUANTISED_TOLERANCE_NATS = 0.3  # vLLM rounds activations too, or weights as it loads them, where transformers does not
PROOF_ROOM = 1.3  # times the teacher's weights: for activations


def prove(
    rows: Any, teacher: lookup.Model, learner: Any, teacher_dtype: str, settings: Train, is_quantised: bool = False
) -> dict[str, Any]:
    """Prove the alignment contract of records.py on rows that will be trained on; returns what was measured.

    `teacher_dtype` is the type that the teacher answered in, "" if a server did not tell; `is_quantised`: in few bits,
    of its weights or its activations. Raises UserError, saying which part fails, and by how much.
    """
    vocab_size, chunk_tokens = len(learner.get_output_embeddings().weight), settings.head_chunk_tokens
    facts: dict[str, Any] = {"worst_sampled_difference_nats": check_sampled_tokens(rows, teacher.vocab_size())}
    batch = proof_batch(rows, vocab_size)
    facts["proof_tokens"] = len(batch["teacher_ids_NK"])
    facts |= student_shift(learner, batch, chunk_tokens)
    model = _loaded(teacher, teacher_dtype)
    if model is not None:
        tolerance = TEACHER_TOLERANCE_NATS.get(teacher_dtype, LOOSE_TEACHER_TOLERANCE_NATS)
        tolerance = QUANTISED_TOLERANCE_NATS if is_quantised else tolerance
        facts |= check_teacher(model, batch, chunk_tokens, tolerance)
        facts["teacher_tolerance_nats"] = tolerance
        if settings.temperature != 1 and settings.targets == "stored":
            facts["tempering_error_nats"] = tempering_error(model, batch, settings.temperature)
    else:
        say("train: only the student checks that the rows are aligned, by how much worse it fits shifted rows")
        facts["teacher_kl_nats"] = None
        check_student_shift(facts)
    return facts


@torch.no_grad()
def tempering_error(teacher: Any, batch: dict[str, Tensor], temperature: float) -> float:
    """KL(exact ‖ what is made of the stored rows) at a temperature on the proof's rows, nats a token; said aloud."""
    hidden_NH, _ = states(teacher, model_inputs(batch))
    ids_NK, logprobs_NK, log_tail_N = (batch[f"teacher_{name}"] for name in ("ids_NK", "logprobs_NK", "log_tail_N"))
    logits_NV = logits(hidden_NH, head_of(teacher)).cpu()
    error_nats = tempering_error_nats(logits_NV, ids_NK, logprobs_NK, log_tail_N, temperature).mean().item()
    say(
        f"train: at temperature {temperature:g} the stored distributions are {error_nats:.4f} nats a token from the"
        " exact ones (what is outside the support is taken as many equal tokens: train/losses/temperature.py)"
    )
    return error_nats


def check_sampled_tokens(rows: Any, vocab_size: int) -> float:
    """Some hundred responses, each as `alignment.check` has it; returns the largest difference, nats."""
    step = max(1, len(rows) // MAX_CHECKED_RESPONSES)
    return max(alignment.check(rows[index], vocab_size) for index in range(0, len(rows), step))


def check_teacher(teacher: Any, batch: dict[str, Tensor], chunk_tokens: int, tolerance_nats: float) -> dict[str, float]:
    """A student equal to the teacher, through the real batch and the real loss.

    It must give the stored log-prob of each token, and a KL of 0 to the stored rows, but for rounding; if rows hold
    draws, which have a KL of their own, or vLLM rounded what transformers does not, a clearly lower one than to rows
    moved by one token. Returns both, nats. Raises UserError where they are off by more than the tolerance.
    """
    ce_N, kl_N = losses_nats(teacher, batch, chunk_tokens)
    kl_nats, shifted_nats = float(kl_N.mean()), mean_kl_nats(teacher, shifted(batch, 1), chunk_tokens)
    off_nats = float((ce_N.cpu() + batch["token_logprobs_N"]).abs().mean())
    # a KL is of the second order in what differs
    ceiling_nats = tolerance_nats if tolerance_nats < LOOSE_TEACHER_TOLERANCE_NATS else (2 * tolerance_nats) ** 0.5
    if not off_nats < ceiling_nats:
        raise UserError(
            f"train: the teacher's log-probs of its own tokens are {off_nats:.4g} nats from the stored ones, not 0"
            f" (±{ceiling_nats:.2g}): the weights are not those that generated, or tokens were altered"
        )
    has_draws = bool(batch["has_draws"])
    ceiling_nats = tolerance_nats + CODEC_KL_NATS
    if has_draws:
        ceiling_nats = shifted_nats - SHIFT_MARGIN_NATS
    elif tolerance_nats >= QUANTISED_TOLERANCE_NATS:
        ceiling_nats = shifted_nats / 2
    if not -ceiling_nats < kl_nats < ceiling_nats:
        raise UserError(
            f"train: the teacher's own KL to the stored log-probs is {kl_nats:.4g} nats (moved by a token:"
            f" {shifted_nats:.4g}), not 0: the rows do not belong to these tokens"
        )
    return {"teacher_logprob_difference_nats": off_nats, "teacher_kl_nats": kl_nats}


def student_shift(learner: Any, batch: dict[str, Tensor], chunk_tokens: int) -> dict[str, float]:
    """The untrained student's KL to the rows as they stand, and the lower of those one token early and late, nats."""
    kl_nats = {shift: mean_kl_nats(learner, shifted(batch, shift), chunk_tokens) for shift in (0, -1, 1)}
    return {"student_kl_nats": kl_nats[0], "student_kl_shifted_nats": min(kl_nats[-1], kl_nats[1])}


def check_student_shift(facts: dict[str, Any]) -> None:
    """Where the teacher can't be loaded: a student that knows anything fits the rows better than shifted ones.

    Raises UserError where a shift fits clearly better. A student that is noise before it learns proves nothing, and
    is let pass with a word.
    """
    aligned, best_shift = facts["student_kl_nats"], facts["student_kl_shifted_nats"]
    if best_shift < aligned - SHIFT_MARGIN_NATS:
        raise UserError(
            f"train: the student's KL to the stored rows is {aligned:.3f} nats, but {best_shift:.3f} with the rows"
            " moved by one token: the rows are not aligned"
        )
    if best_shift < aligned + SHIFT_MARGIN_NATS:
        say("train: the untrained student fits shifted rows as well, so it can't tell whether the rows are aligned")


def mean_kl_nats(model: Any, batch: dict[str, Tensor], chunk_tokens: int) -> float:
    """Forward KL per token of a model to the batch's stored rows."""
    return losses_nats(model, batch, chunk_tokens)[1].mean().item()


def losses_nats(model: Any, batch: dict[str, Tensor], chunk_tokens: int) -> tuple[Tensor, Tensor]:
    """`(ce_N, kl_N)` of a model on a batch, by the loss that train uses."""
    model.eval()
    inputs = {key: value.to(model.device) for key, value in model_inputs(batch).items()}
    with torch.no_grad():
        losses = token_losses(model, inputs, Train(head_chunk_tokens=chunk_tokens))
    return losses.ce_N, losses.kl_N


def model_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch as train sees it: without what is for the proof alone."""
    return {name: value for name, value in batch.items() if name not in ("token_logprobs_N", "has_draws")}


def shifted(batch: dict[str, Tensor], shift: int) -> dict[str, Tensor]:
    """The batch with the teacher's rows moved by `shift` tokens against the labels."""
    return {key: value.roll(shift, dims=0) if key.startswith("teacher_") else value for key, value in batch.items()}


def proof_batch(rows: Any, vocab_size: int) -> dict[str, Tensor]:
    """A few of the shorter answers, together at most about MAX_PROOF_TOKENS tokens."""
    order = np.argsort(rows.lengths, kind="stable")
    candidates: list[Any] = [rows[int(index)] for index in order[len(order) // 4 :][:MAX_CANDIDATES]]
    # reasoning and all, as the teacher wrote it: where that is dropped, longer than the index has it
    candidates.sort(key=lambda row: len(row["prompt_token_ids"]) + len(row["token_ids"]))
    chosen, total = [], 0
    for row in candidates:
        total += len(row["prompt_token_ids"]) + len(row["token_ids"])
        if chosen and total > MAX_PROOF_TOKENS:
            break
        chosen.append(row)
    return {
        **collate(chosen, 0, vocab_size, Train()),
        "token_logprobs_N": torch.from_numpy(
            np.concatenate([np.asarray(row["token_logprobs"], np.float32)[~is_masked(row)] for row in chosen])
        ),
        "has_draws": torch.tensor(chosen[0]["logprobs"]["num_draws"] > 0),
    }


def fitting_dtype(teacher: lookup.Model, teacher_dtype: str = "") -> str | None:
    """The type in which memory holds the teacher, and its activations: float32, or else the one that it answered in.

    None if it holds neither.
    """
    free = hardware.available_bytes()
    for dtype in ("float32", teacher_dtype or teacher.dtype()):
        if PROOF_ROOM * teacher.plain_bytes(lookup.ITEM_BYTES.get(dtype, 4)) < free:
            return dtype
    return None


def _loaded(teacher: lookup.Model, teacher_dtype: str) -> Any:
    """The teacher by transformers; None, with a word, if it can't be had on this machine."""
    try:
        dtype = fitting_dtype(teacher, teacher_dtype)
        if dtype is not None:
            return student.load(teacher.path, dtype)
        say("train: the teacher does not fit this machine's memory")
    except UserError as error:
        if quantised.method_of(teacher.config()) is None:
            raise
        say(f"train: the teacher can't be loaded beside the student ({error})")
    return None

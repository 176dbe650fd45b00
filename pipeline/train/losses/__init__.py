"""The losses of each answer token: cross-entropy of its label, and the divergence from the teacher's distribution.

Axes: B batch, T tokens of a row, N loss positions, C tokens of one chunk, K stored support, V vocabulary, H hidden.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.config import Train
from pipeline.models.forward.head import Head, decoder_of, entropy_and_best, head_of, logits, support_logprobs
from pipeline.train.losses.divergences import buckets, chosen, forward_kl_nats, total_variation
from pipeline.train.losses.temperature import tempered
from pipeline.train.targets import IGNORED

Divergence = Callable[[Tensor, Tensor], Tensor]


class TokenLosses(NamedTuple):
    """Of each loss position, shape (N,)."""

    ce_N: Tensor  # −log q of the label, nats
    kl_N: Tensor  # forward KL over the stored buckets at temperature 1, nats: what the curves show
    divergence_N: Tensor  # what kd_weight weighs: the chosen divergence, times the temperature's square


def token_losses(model: Any, inputs: dict[str, Tensor], settings: Train, teacher: Any = None) -> TokenLosses:
    """Losses of a batch, of its N labels or the chosen share of them; `teacher` is a model, for targets=live."""
    hidden_NH, labels_N = states(model, inputs)
    teacher_NH = hidden_NH if teacher is None else live_states(teacher, inputs)
    targets = [inputs[f"teacher_{name}"] for name in ("ids_NK", "logprobs_NK", "log_tail_N")]
    head, chunk_tokens = head_of(model), settings.head_chunk_tokens
    ids_NK, logprobs_NK, log_tail_N = targets
    plain = support_logprobs(hidden_NH, head, ids_NK, labels_N, chunk_tokens)
    pair = buckets(logprobs_NK, log_tail_N, plain.support_NK, plain.log_tail_N)
    kl_N, divergence, T = forward_kl_nats(*pair), chosen(settings), settings.temperature
    if teacher is not None:
        heads = (head_of(teacher)._replace(temperature=T), head._replace(temperature=T))
        divergence_N = live_divergence(teacher_NH, hidden_NH, *heads, divergence, chunk_tokens)
    elif T != 1:
        softer = support_logprobs(hidden_NH, head._replace(temperature=T), ids_NK, labels_N, chunk_tokens)
        divergence_N = divergence(*buckets(*tempered(logprobs_NK, log_tail_N, T), softer.support_NK, softer.log_tail_N))
    else:
        divergence_N = kl_N if settings.divergence == "forward_kl" else divergence(*pair)
    # gradients of softened distributions shrink with the square of the temperature (Hinton et al. 2015)
    return TokenLosses(-plain.label_N, kl_N, T * T * divergence_N)


class Validation(NamedTuple):
    """Of each answer token, shape (N,), over the stored buckets at temperature 1."""

    kl_nats_N: Tensor
    top1_agreement_frac_N: Tensor  # whether the student's likeliest token of all is the teacher's
    acceptance_frac_N: Tensor  # Σ min(p, q), at most the whole vocabulary's and so a little above it
    ce_nats_N: Tensor


def validation_measures(model: Any, inputs: dict[str, Tensor], settings: Train) -> Validation:
    """How near the student is to the teacher's stored rows of a batch."""
    hidden_NH, labels_N = states(model, inputs)
    head, ids_NK = head_of(model), inputs["teacher_ids_NK"]
    student = support_logprobs(hidden_NH, head, ids_NK, labels_N, settings.head_chunk_tokens)
    pair = buckets(inputs["teacher_logprobs_NK"], inputs["teacher_log_tail_N"], student.support_NK, student.log_tail_N)
    _, best_N = entropy_and_best(hidden_NH, head, settings.head_chunk_tokens)
    teachers_best_N = ids_NK.gather(1, inputs["teacher_logprobs_NK"].argmax(dim=1, keepdim=True)).squeeze(1)
    return Validation(
        forward_kl_nats(*pair),
        (best_N == teachers_best_N).to(pair[1].dtype),
        1 - total_variation(*pair),
        -student.label_N,
    )


def states(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """`(hidden_NH, labels_N)`: the state at position t − 1, which predicts label t, wherever label t is not ignored."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    outside = {name: value for name, value in inputs.items() if name != "labels" and not name.startswith("teacher_")}
    hidden_BTH = decoder_of(base)(**outside, use_cache=False).last_hidden_state
    labels_BT = inputs["labels"][:, 1:]
    is_loss_BT = labels_BT != IGNORED
    return hidden_BTH[:, :-1][is_loss_BT], labels_BT[is_loss_BT]


@torch.no_grad()
def live_states(teacher: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The teacher's own hidden states at the batch's loss positions."""
    return states(teacher, inputs)[0]


def live_divergence(
    teacher_NH: Tensor, hidden_NH: Tensor, teacher_head: Head, head: Head, divergence: Divergence, chunk_tokens: int
) -> Tensor:
    """The divergence over the whole vocabulary, shape (N,), from two models' hidden states: the exact reference.

    Logits exist for `chunk_tokens` tokens at a time, and are made again in the backward pass. Models of one family pad
    their vocabulary differently: what both have is compared.
    """
    vocab_size = min(len(teacher_head.weight_VH), len(head.weight_VH))

    def of_chunk(teacher_CH: Tensor, hidden_CH: Tensor) -> Tensor:
        pair = [logits(*args)[:, :vocab_size] for args in ((teacher_CH, teacher_head), (hidden_CH, head))]
        return divergence(*(logits_CV.log_softmax(dim=1) for logits_CV in pair))

    parts = [
        checkpoint(of_chunk, *chunk, use_reentrant=False)
        for chunk in zip(teacher_NH.split(chunk_tokens), hidden_NH.split(chunk_tokens), strict=True)
    ]
    return torch.cat(parts)

"""From hidden states to the student's log-probs on a support, its exact tail and the label: no N×V logits at once.

Axes: N tokens, K stored support, V vocabulary, H hidden.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class SupportLogprobs(NamedTuple):
    """The student's distribution as the loss needs it, nats, float32 (float64 for float64 weights)."""

    support_NK: Tensor  # log q of the support's ids
    log_tail_N: Tensor  # log of the mass outside the support, by logsumexp over it
    label_N: Tensor  # log q of the label


def support_logprobs(
    hidden_NH: Tensor, weight_VH: Tensor, ids_NK: Tensor, labels_N: Tensor, chunk_tokens: int
) -> SupportLogprobs:
    """Log-probs at `ids_NK` and at `labels_N`, and the log tail mass, with gradients.

    The vocabulary's logits exist for `chunk_tokens` tokens at a time, and once more in the backward pass.
    """
    return SupportLogprobs(*_SupportLogprobs.apply(hidden_NH, weight_VH, ids_NK, labels_N, chunk_tokens))


class _SupportLogprobs(torch.autograd.Function):
    """d loss / d logit_j = g_j − q_j·G on the support, g_tail·q_j/q_tail − q_j·G outside it; G is the sum of all g."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, ids_NK: Tensor, labels_N: Tensor, chunk: int) -> Any:
        supports, tails, label_logprobs, normalisers = [], [], [], []
        kind = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VH.dtype
        head_VH = weight_VH.to(dtype)
        for start in range(0, len(hidden_NH), chunk):
            rows = slice(start, start + chunk)
            logits_CV = _logits(hidden_NH[rows], head_VH)
            normaliser_C = logits_CV.logsumexp(dim=1)
            label_logprobs.append(logits_CV.gather(1, labels_N[rows, None]).squeeze(1) - normaliser_C)
            supports.append(logits_CV.gather(1, ids_NK[rows]) - normaliser_C[:, None])
            tails.append(logits_CV.scatter_(1, ids_NK[rows], -torch.inf).logsumexp(dim=1) - normaliser_C)
            normalisers.append(normaliser_C)
        support_NK, log_tail_N = torch.cat(supports), torch.cat(tails)
        ctx.save_for_backward(hidden_NH, weight_VH, ids_NK, labels_N, support_NK, log_tail_N, torch.cat(normalisers))
        ctx.chunk, ctx.dtype = chunk, dtype
        return support_NK, log_tail_N, torch.cat(label_logprobs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_NH, weight_VH, ids_NK, labels_N, support_NK, log_tail_N, normaliser_N = ctx.saved_tensors
        g_NK, g_tail_N, g_label_N = grads
        total_N = g_NK.sum(dim=1) + g_tail_N + g_label_N
        # Where the loss gives the tail no weight, its mass may be 0: 0/0 is 0 here.
        outside_N = torch.where(g_tail_N == 0, 0.0, g_tail_N * torch.exp(-log_tail_N)) - total_N
        inside_NK = -support_NK.exp() * total_N[:, None]
        head_VH = weight_VH.to(ctx.dtype)
        grad_hidden_NH = torch.empty_like(hidden_NH)
        grad_weight_VH = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden_NH), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            grad_CV = _logits(hidden_NH[rows], head_VH).sub_(normaliser_N[rows, None]).exp_()
            # set, then added to: an id that stands twice gets the sum of its g
            grad_CV.mul_(outside_N[rows, None]).scatter_(1, ids_NK[rows], inside_NK[rows])
            grad_CV.scatter_add_(1, ids_NK[rows], g_NK[rows])
            grad_CV.scatter_add_(1, labels_N[rows, None], g_label_N[rows, None])
            grad_CV = grad_CV.to(ctx.dtype)
            grad_hidden_NH[rows] = grad_CV @ head_VH
            if grad_weight_VH is not None:
                grad_weight_VH += grad_CV.T @ hidden_NH[rows].to(ctx.dtype)
        return grad_hidden_NH, grad_weight_VH, None, None, None


def _logits(hidden_CH: Tensor, head_VH: Tensor) -> Tensor:
    """Logits: multiplied in the head's type (autocast's, where it is on), then in float32 at least."""
    logits_CV = hidden_CH.to(head_VH.dtype) @ head_VH.T
    return logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()

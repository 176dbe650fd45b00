"""From hidden states to the student's log-probs on a support, its exact tail and the label: no N×V logits at once.

Axes: N tokens, C tokens of one chunk, K stored support, V vocabulary, H hidden.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor


class Head(NamedTuple):
    """What makes logits of hidden states: cap(scale · (hidden · weightᵀ + bias)) / temperature."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None  # cap(x) = softcap · tanh(x / softcap), as Gemma has it
    temperature: float = 1.0


class SupportLogprobs(NamedTuple):
    """The student's distribution as the loss needs it, nats, float32 (float64 for float64 weights)."""

    support_NK: Tensor  # log q of the support's ids
    log_tail_N: Tensor  # log of the mass outside the support, by logsumexp over it
    label_N: Tensor  # log q of the label


def head_of(model: Any) -> Head:
    """The head of a causal LM. What its config says of scale and cap is proved against its own logits by contract.py.

    A head that FSDP keeps in parts is gathered.
    """
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    weight_VH, bias_V = _whole(layer.weight), _whole(getattr(layer, "bias", None))
    factors = [getattr(config, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")]
    scale = next((float(factor) for factor in factors if factor is not None), None)
    if scale is None:  # Granite divides by it, HyperCLOVA X multiplies
        divisor = float(getattr(config, "logits_scaling", None) or 1.0)
        scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
    return Head(weight_VH, bias_V, scale, getattr(config, "final_logit_softcapping", None))


def support_logprobs(
    hidden_NH: Tensor, head: Head, ids_NK: Tensor, labels_N: Tensor, chunk_tokens: int
) -> SupportLogprobs:
    """Log-probs at `ids_NK` and at `labels_N`, and the log tail mass, with gradients.

    The vocabulary's logits exist for `chunk_tokens` tokens at a time, and once more in the backward pass. K may be 0.
    A row's first id may stand in it again (the fill of short rows); no other id may.
    """
    return SupportLogprobs(
        *_SupportLogprobs.apply(hidden_NH, head.weight_VH, head.bias_V, ids_NK, labels_N, head[2:], chunk_tokens)
    )


def logits(hidden_NH: Tensor, head: Head) -> Tensor:
    """All logits, (N, V), by ordinary autograd: for chunks, and for checks."""
    dense_NV = torch.nn.functional.linear(hidden_NH, head.weight_VH, head.bias_V)
    dense_NV = dense_NV.to(_at_least_float32(dense_NV.dtype)) * head.scale
    if head.softcap is not None:
        dense_NV = head.softcap * torch.tanh(dense_NV / head.softcap)
    return dense_NV / head.temperature


@torch.no_grad()
def entropy_and_best(hidden_NH: Tensor, head: Head, chunk_tokens: int) -> tuple[Tensor, Tensor]:
    """`(entropy_N, best_N)`: the entropy of each next-token distribution, nats, and its likeliest token."""
    entropies, best = [], []
    cast = _cast(head.weight_VH, head.bias_V)
    for rows in _chunks(len(hidden_NH), chunk_tokens):
        logits_CV, _ = _logits(hidden_NH[rows], *cast, head[2:])
        best.append(logits_CV.argmax(dim=1))
        normaliser_C = logits_CV.logsumexp(dim=1)
        entropies.append(normaliser_C - (logits_CV.softmax(dim=1).mul_(logits_CV)).sum(dim=1))
    return torch.cat(entropies), torch.cat(best)


class _SupportLogprobs(torch.autograd.Function):
    """d loss / d logit_j = g_j − q_j·G on the support, g_tail·q_j/q_tail − q_j·G outside it; G is the sum of all g."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, *rest: Any) -> Any:
        ids_NK, labels_N, shape, chunk_tokens = rest
        cast = _cast(weight_VH, bias_V)
        parts = [
            _forward_chunk(_logits(hidden_NH[rows], *cast, shape)[0], ids_NK[rows], labels_N[rows])
            for rows in _chunks(len(hidden_NH), chunk_tokens)
        ]
        support_NK, log_tail_N, label_N, normaliser_N = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, ids_NK, labels_N, support_NK, log_tail_N, normaliser_N)
        ctx.shape, ctx.chunk_tokens, ctx.dtype = shape, chunk_tokens, cast[0].dtype
        return support_NK, log_tail_N, label_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_NH, weight_VH, bias_V, ids_NK, labels_N, support_NK, log_tail_N, normaliser_N = ctx.saved_tensors
        g_NK, g_tail_N, g_label_N = grads
        total_N = g_NK.sum(dim=1) + g_tail_N + g_label_N
        # Where the loss gives the tail no weight, its mass may be 0: 0/0 is 0 here. Below e⁻⁸⁸, 1/mass is no float32.
        outside_N = torch.where(g_tail_N == 0, 0.0, g_tail_N * torch.exp(-log_tail_N.clamp(min=-88))) - total_N
        inside_NK = -support_NK.exp() * total_N[:, None]
        head_VH, bias_cast_V = weight_VH.to(ctx.dtype), None if bias_V is None else bias_V.to(ctx.dtype)
        parameters: list[Any] = [weight_VH, bias_V]
        sums = [
            torch.zeros_like(tensor, dtype=_at_least_float32(tensor.dtype)) if needed else None
            for tensor, needed in zip(parameters, ctx.needs_input_grad[1:3], strict=True)
        ]
        grad_hidden_NH = torch.empty_like(hidden_NH)
        for rows in _chunks(len(hidden_NH), ctx.chunk_tokens):
            logits_CV, slope_CV = _logits(hidden_NH[rows], head_VH, bias_cast_V, ctx.shape)
            grad_CV = logits_CV.sub_(normaliser_N[rows, None]).exp_().mul_(outside_N[rows, None])
            # set, then added to: an id that stands twice gets the sum of its g
            grad_CV.scatter_(1, ids_NK[rows], inside_NK[rows]).scatter_add_(1, ids_NK[rows], g_NK[rows])
            grad_CV.scatter_add_(1, labels_N[rows, None], g_label_N[rows, None])
            if slope_CV is not None:
                grad_CV.mul_(slope_CV)
            scale, _, temperature = ctx.shape
            if scale != temperature:
                grad_CV.mul_(scale / temperature)
            if sums[1] is not None:
                sums[1] += grad_CV.sum(dim=0)
            grad_CV = grad_CV.to(ctx.dtype)
            grad_hidden_NH[rows] = grad_CV @ head_VH
            if sums[0] is not None:
                _add_product(sums[0], grad_CV.T, hidden_NH[rows].to(ctx.dtype))
        return grad_hidden_NH, *(s if s is None else s.to(weight_VH.dtype) for s in sums), None, None, None, None


def _forward_chunk(logits_CV: Tensor, ids_CK: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(support_CK, log_tail_C, label_C, normaliser_C)` of one chunk, whose logits are overwritten."""
    label_C = logits_CV.gather(1, labels_C[:, None]).squeeze(1)
    support_CK = logits_CV.gather(1, ids_CK)
    is_again_CK = ids_CK == ids_CK[:, :1]
    is_again_CK[:, :1] = False
    logits_CV.scatter_(1, ids_CK, -torch.inf)
    highest_C = logits_CV.amax(dim=1).clamp(min=torch.finfo(logits_CV.dtype).min)  # finite where nothing is outside
    tail_C = logits_CV.sub_(highest_C[:, None]).exp_().sum(dim=1).log() + highest_C
    normaliser_C = torch.logaddexp(support_CK.masked_fill(is_again_CK, -torch.inf).logsumexp(dim=1), tail_C)
    return support_CK - normaliser_C[:, None], tail_C - normaliser_C, label_C - normaliser_C, normaliser_C


def _whole(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _chunks(num_tokens: int, chunk_tokens: int) -> Iterator[slice]:
    """Slices of nearly equal length, at least one: a short last one would cost as much as a long one."""
    num = max(1, -(-num_tokens // chunk_tokens))
    for place in range(num):
        yield slice(num_tokens * place // num, num_tokens * (place + 1) // num)


def _cast(weight_VH: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The head in the type that it is multiplied in: its own, or autocast's where that is on."""
    kind = weight_VH.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VH.dtype
    return weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)


def _logits(
    hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, shape: tuple[float, float | None, float]
) -> tuple[Tensor, Tensor | None]:
    """Logits in float32 at least, and the cap's slope at each, 1 − tanh², where there is a cap."""
    scale, softcap, temperature = shape
    logits_CV = _product(hidden_CH.to(weight_VH.dtype), weight_VH.T)
    if bias_V is not None:
        logits_CV += bias_V
    slope_CV = None
    if softcap is not None:
        logits_CV.mul_(scale / softcap).tanh_()
        slope_CV = 1 - logits_CV.square()
        logits_CV.mul_(softcap / temperature)
    elif scale != temperature:
        logits_CV.mul_(scale / temperature)
    return logits_CV, slope_CV


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32 at least: on a GPU without rounding it to a half type first."""
    if left.is_cuda and left.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).to(_at_least_float32(left.dtype))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, the sum in total's type."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += _product(left, right)

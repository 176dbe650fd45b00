"""The head, one for train and evaluate: from hidden states to logits, and to log-probs without N×V logits at once.

Axes: N tokens, C tokens of one chunk, K stored support, V vocabulary, H hidden.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from pipeline.errors import UserError

PROOF_TOKENS = 32
ADVICE = "choose a model of another architecture"
# Of the largest logit. Float32: two orders of the same sums. Half types: a model rounds after each of its few steps.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 5e-3, torch.bfloat16: 2e-2}
SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")  # of a config: what logits are multiplied by
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")  # what they, or the hidden states, are divided by
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


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
    """The head of a causal LM, as `prove` has shown it to be its own.

    A head that FSDP keeps in parts is gathered, and one that accelerate has offloaded is fetched to where it computes.
    Raises UserError if the model has none, or an adapter changes it.
    """
    layer, config = model.get_output_embeddings(), model.config.get_text_config(decoder=True)
    if hasattr(layer, "base_layer") or hasattr(layer, "modules_to_save"):
        raise UserError("train.lora: adapters on the output layer are not supported; leave it out of target_modules")
    if getattr(layer, "weight", None) is None:
        raise UserError(f"{config.model_type} models have no output layer that Retort knows; {ADVICE}")
    with align_module_device(layer):
        weight_VH, bias_V = _whole(layer.weight), _whole(getattr(layer, "bias", None))
    return Head(weight_VH, bias_V, _scale(config), _first_of(config, CAPS))


def decoder_of(model: Any) -> Any:
    """What gives the hidden states: the layers and what stands around them, but for the head.

    Some models (Llama 4) say that they are their own decoder.
    """
    decoder = model.get_decoder()
    if getattr(decoder, "get_output_embeddings", lambda: None)() is None:
        return decoder
    return decoder.model if decoder is model else decoder_of(decoder)


def prove(model: Any, who: str) -> None:
    """Show that the logits made here of a model's hidden states are its own, on tokens from all over its vocabulary.

    `who` begins the message: the stage and the model. Raises UserError if they differ.
    """
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ids_1N = torch.linspace(0, vocab_size - 1, PROOF_TOKENS, device=input_device(model)).long()[None]
    inputs = {"input_ids": ids_1N, "attention_mask": torch.ones_like(ids_1N), "use_cache": False}
    was_training = model.training
    model.eval()
    with torch.no_grad():
        try:
            hidden_NH = decoder_of(model)(**inputs).last_hidden_state[0]
        except (TypeError, AttributeError):  # what calls itself the decoder is something else
            raise UserError(f"{unknown(model, who)}; {ADVICE}") from None
        own_NV = model(**inputs).logits[0]
    model.train(was_training)
    check_logits(model, own_NV, hidden_NH, who)


def unknown(model: Any, who: str) -> str:
    """The beginning of a message."""
    return f"{who}: {model.config.model_type} models make their logits in a way that Retort does not know"


def check_logits(model: Any, own_NV: Tensor, hidden_NH: Tensor, who: str) -> None:
    """Raises UserError if a model's own logits are not those that are made here of its hidden states."""
    head = head_of(model)
    ours_NV = dense_logits(hidden_NH, head)
    if ours_NV.shape != own_NV.shape:
        raise UserError(f"{unknown(model, who)} ({own_NV.shape[1]} of {ours_NV.shape[1]} rows); {ADVICE}")
    # Mamba, Nemotron-H, Mllama: float32 of what the head has rounded to its own type before
    tolerance = max(TOLERANCE[own_NV.dtype], TOLERANCE.get(head.weight_VH.dtype, 0.0))
    own_NV = own_NV.to(ours_NV)
    if not own_NV.isfinite().all():
        raise UserError(f"{who}: its logits are not finite: the weights are damaged, or overflow their type")
    off = (own_NV - ours_NV).abs().max().item()
    if not off <= tolerance * (1 + own_NV.abs().max().item()):
        raise UserError(f"{unknown(model, who)} (off by {off:.3g}); {ADVICE}")


def input_device(model: Any) -> torch.device:
    """Where a model takes its token ids: where its embedding computes, also if accelerate keeps it elsewhere."""
    embedding = model.get_input_embeddings()
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return embedding.weight.device if device is None else torch.device(device)


def _scale(config: Any) -> float:
    """What logits are multiplied by. Granite divides by what HyperCLOVA X, under the same name, multiplies with."""
    scale, divisor = _first_of(config, SCALES), _first_of(config, DIVISORS)
    if scale is not None or divisor is None:
        return 1.0 if scale is None else scale
    return divisor if config.model_type.startswith("hyperclovax") else 1 / divisor


def _first_of(config: Any, names: tuple[str, ...]) -> float | None:
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float)), None)


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
def dense_logits(hidden_NH: Tensor, head: Head) -> Tensor:
    """All logits, (N, V), where the head is; as the sparse ones are made: in float32 at least, without gradients."""
    cast = _cast(head.weight_VH, head.bias_V)
    return _logits(hidden_NH.to(head.weight_VH.device), *cast, head[2:])[0]


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
        # If the loss gives the tail no weight, its mass may be 0: 0/0 is 0 here. Below e⁻⁸⁸, 1/mass overflows float32.
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

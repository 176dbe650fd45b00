"""Attention for answers laid end to end, which heeds where each ends, so that it sees itself alone.

Axes: B batch (1 where packed), T tokens of a row, H attention heads, D size of a head.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.import_utils import is_flash_attn_2_available

from pipeline.errors import UserError
from pipeline.models import pruning
from pipeline.models.forward.head import decoder_of, input_device

NAME = "documents"  # of our attention, as transformers knows it
ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
TOLERANCE = 1e-3  # of what another answer in the pack may change, of the size of a hidden state


def check(config: Any) -> None:
    """Raises UserError for a model of this config whose answers can't be packed: tried on a few layers of its kind.

    Layers that are too large to be made for a trial are passed over; `use` finds them out.
    """
    sample = pruning.sample(config)
    if sample is not None:
        use(sample, "float32")


def use(model: PreTrainedModel, dtype: str) -> None:
    """Have the model's attention heed where the answers of a flat batch (batches.collate_flat) end.

    Where a batch has no such ends, it attends as transformers' sdpa does. On CUDA with flash-attn, that is used for
    train.dtype=bfloat16: it heeds the same ends. Raises UserError if something of one answer would reach another:
    layers that carry a state along the row (linear attention, Mamba, convolutions), and attention of a model's own
    making.
    """
    config: Any = model.config
    if others := set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS:
        raise _refusal(config, f"it has layers of {min(others)}, which carry a state from one answer to the next")
    if model._is_stateful or not model._can_set_attn_implementation():
        raise _refusal(config, "there is no way to tell its layers where an answer ends")
    previous = config._attn_implementation
    _set_attention(model, NAME)
    try:
        _check_apart(model)
    except UserError:
        _set_attention(model, previous)
        raise
    has_flash = torch.cuda.is_available() and is_flash_attn_2_available() and model._supports_flash_attn
    if has_flash and dtype == "bfloat16":
        _set_attention(model, "flash_attention_2")


def _set_attention(model: PreTrainedModel, name: str) -> None:
    """Also in layers that hold a config of their own, as those of a pruned model do."""
    model.set_attn_implementation(name)
    decoder: Any = decoder_of(model)
    for module in decoder.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = name


def documents_attention(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each answer to itself, of shape (B, T, H, D): as many calls of sdpa as there are answers.

    No padding: work and memory are those of the answers one by one, with a T×T mask where one is longer than the
    layer's window. Raises UserError if the model asks for what sdpa does not do: soft caps and sinks.
    """
    for name, what in (("softcap", "capped attention scores"), ("s_aux", "attention sinks")):
        if kwargs.get(name) is not None:
            raise _refusal(module.config, f"attention to packed answers does not support {what}")
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **kwargs)
    lengths = cu_seq_lens_q.diff().tolist()
    window = kwargs.get("sliding_window")
    split = (each.split(lengths, dim=2) for each in (query_BHTD, key_BHTD, value_BHTD))
    alone = []
    for q, k, v in zip(*split, strict=True):
        seen_TT = None if window is None or q.shape[2] <= window else _band(q.shape[2], window, q.device)
        alone.append(sdpa_attention_forward(module, q, k, v, seen_TT, **{**kwargs, "is_causal": seen_TT is None})[0])
    return torch.cat(alone, dim=1), None


def _band(num_tokens: int, window: int, device: torch.device) -> Tensor:
    """What each token of an answer sees: itself, and the `window` − 1 before it; shape (1, 1, T, T)."""
    places_T = torch.arange(num_tokens, device=device)
    back_TT = places_T[:, None] - places_T
    return ((back_TT >= 0) & (back_TT < window))[None, None]


def _mask(attention_mask: Tensor | None = None, allow_is_causal_skip: bool = True, **kwargs: Any) -> Tensor | None:
    """None for a flat batch, whose ends say it all; else what sdpa would have.

    transformers calls it without an attention_mask, and does not allow it to skip the mask, where it saw positions
    begin anew.
    """
    if attention_mask is None and not allow_is_causal_skip:
        return None
    make: Any = sdpa_mask
    return make(attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip, **kwargs)


AttentionInterface.register(NAME, documents_attention)
AttentionMaskInterface.register(NAME, _mask)


def _check_apart(model: PreTrainedModel) -> None:
    """Raises UserError if the hidden states of an answer change with the answer before it, tried on a few tokens."""
    decoder: Any = decoder_of(model)
    device, was_training = input_device(model), model.training
    ends = torch.tensor([0, 4, 8], dtype=torch.int32, device=device)
    sizes = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 4, "max_length_k": 4}
    position_ids = torch.arange(4, device=device).repeat(2)[None]
    model.eval()
    with torch.no_grad():
        first, other = (
            decoder(
                input_ids=torch.tensor([[*before, 1, 2, 3, 4]], device=device),
                position_ids=position_ids,
                use_cache=False,
                **sizes,
            ).last_hidden_state[0, 4:]
            for before in ((1, 2, 3, 4), (5, 6, 7, 8))
        )
    model.train(was_training)
    if not (first - other).abs().max() <= TOLERANCE * first.abs().max():
        raise _refusal(model.config, "in a trial, answers in one pack changed one another")


def _refusal(config: Any, why: str) -> UserError:
    return UserError(f"student: a {config.model_type} can't be trained with train.pack_tokens: {why}; set it to null")

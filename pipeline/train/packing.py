"""Answers laid end to end, each seeing itself alone: which go into one pack, and attention that heeds their ends.

Axes: B batch (1 where packed), T tokens of a row, H attention heads, D size of a head.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.import_utils import is_flash_attn_2_available

from pipeline.errors import UserError
from pipeline.head import decoder_of, input_device
from pipeline.train.rows import WINDOW_SHARDS, Answers

NAME = "documents"  # of our attention, as transformers knows it
ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
TOLERANCE = 1e-3  # of what another answer in the pack may change, of the size of a hidden state


def plan(answers: Answers, pack_tokens: int, seed: int) -> tuple[list[list[int]], npt.NDArray[np.int32]]:
    """`(packs, windows)`: which answers each pack holds, at most `pack_tokens` tokens, and whose window it is of.

    First-fit decreasing among the answers of WINDOW_SHARDS files, so that a pack is read from files that are held
    together. A function of the seed. Raises UserError where an answer is longer than a pack.
    """
    longest = int(answers.lengths.max(initial=0))
    if longest > pack_tokens:
        raise UserError(
            f"train.pack_tokens={pack_tokens}: the longest answer takes {longest} tokens with its prompt; set it to"
            f" {longest} or more, or lower train.max_length to leave such answers out"
        )
    packs: list[list[int]] = []
    of_window: list[int] = []
    for window, rows in enumerate(windows(answers.index.shards, WINDOW_SHARDS, np.random.default_rng(seed))):
        fitted = _first_fit(rows, answers.lengths, pack_tokens)
        packs += fitted
        of_window += [window] * len(fitted)
    return packs, np.array(of_window, np.int32)


def windows(
    groups: npt.NDArray[np.integer], together: int, generator: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """The rows of some groups at a time, `together` of them, groups in random order and rows shuffled among them."""
    by_group = np.argsort(groups, kind="stable")
    names, starts = np.unique(groups[by_group], return_index=True)
    parts = np.split(by_group, starts[1:])
    order = generator.permutation(len(names))
    for first in range(0, len(order), together):
        yield generator.permutation(np.concatenate([parts[place] for place in order[first : first + together]]))


def _first_fit(rows: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32], pack_tokens: int) -> list[list[int]]:
    """The longest first, each into the first pack with room for it."""
    packs: list[list[int]] = []
    room = np.full(len(rows), pack_tokens, np.int64)  # of as many packs as there could be
    for row in rows[np.argsort(-lengths[rows], kind="stable")].tolist():
        place = int((room >= lengths[row]).argmax())
        if place == len(packs):
            packs.append([])
        packs[place].append(row)
        room[place] -= lengths[row]
    return packs


def use_packed_attention(model: PreTrainedModel, dtype: str) -> None:
    """Have the model's attention heed where the answers of a flat batch (batches.collate_flat) end.

    Where a batch has no such ends, it attends as transformers' sdpa does. On CUDA with flash-attn, that is used for
    train.dtype=bfloat16: it heeds the same ends. Raises UserError where something of one answer would reach another:
    layers that carry a state along the row (linear attention, Mamba, convolutions), and attention of a model's own
    making.
    """
    config: Any = model.config
    if others := set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS:
        raise _refusal(config, f"it has layers of {min(others)}, which carry a state from one answer to the next")
    if model._is_stateful or not model._can_set_attn_implementation():
        raise _refusal(config, "its layers can't be told where an answer ends")
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

    No T×T mask and no padding: work and memory are those of the answers one by one. Raises UserError where the model
    asks for what sdpa does not do: soft caps, sinks, and windows shorter than an answer.
    """
    for name, what in (("softcap", "capped attention scores"), ("s_aux", "attention sinks")):
        if kwargs.get(name) is not None:
            raise _refusal(module.config, f"{what} are not to be had in this attention")
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **kwargs)
    lengths = cu_seq_lens_q.diff().tolist()
    window = kwargs.get("sliding_window")
    if window is not None and max(lengths) > window:
        raise _refusal(
            module.config,
            f"its layers see {window} tokens back, and an answer takes {max(lengths)} with its prompt: lower"
            f" train.max_length to {window}",
        )
    kwargs |= {"is_causal": True}
    split = (each.split(lengths, dim=2) for each in (query_BHTD, key_BHTD, value_BHTD))
    alone = [sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in zip(*split, strict=True)]
    return torch.cat(alone, dim=1), None


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
    """Raises UserError where the hidden states of an answer change with the answer before it, tried on a few tokens."""
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
        raise _refusal(model.config, "its answers were seen to change one another in a pack")


def _refusal(config: Any, why: str) -> UserError:
    return UserError(f"student: a {config.model_type} can't be trained with train.pack_tokens: {why}; set it to null")

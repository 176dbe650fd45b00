"""Which layers of a model change the hidden state most: those that a pruned student keeps.

Axes: T tokens of a prompt with its answer, H hidden.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.models.forward.head import decoder_of
from pipeline.models.pruning import layers_of

MAX_MEASURED_TOKENS = 1024  # of an answer and its prompt
NUM_MEASURED = 32  # answers on which block influence is measured


def most_influential(influence: list[float], num: int) -> list[int]:
    """The `num` layers of highest influence, in the order of the stack; of equals the lower one."""
    return sorted(sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))[:num])


def block_influence(model: PreTrainedModel, rows: Any) -> list[float]:
    """How much each layer changes the hidden state: 1 − mean over tokens of cos(its input, its output).

    Measured on some of the rows, spread over all, each forwarded alone: `rows` has a length and yields dicts with
    `prompt_token_ids` and `token_ids`. Source: ShortGPT, Men et al. 2024 (arXiv:2403.03853), equation 1.
    """
    step = max(1, len(rows) // NUM_MEASURED)
    chosen = range(0, len(rows), step)[:NUM_MEASURED]
    decoder: Any = decoder_of(model)
    before, device = model.device, _device(model)
    decoder.to(device).eval()
    num_tokens = 0
    with _summed(layers_of(model)) as sums, torch.no_grad():
        for index in chosen:
            ids = [*rows[index]["prompt_token_ids"], *rows[index]["token_ids"]][:MAX_MEASURED_TOKENS]
            decoder(input_ids=torch.tensor([ids], device=device), use_cache=False)
            num_tokens += len(ids)
    decoder.to(before)
    return [total / num_tokens for total in sums]


@contextmanager
def _summed(layers: Any) -> Generator[list[float]]:
    """Σ over tokens of 1 − cos(input, output) of each layer, for as long as it is open.

    By hooks: what transformers gives as the last hidden state has the final norm in it.
    """
    sums = [0.0] * len(layers)

    def hook_of(place: int) -> Any:
        def add(layer: Any, args: Any, kwargs: Any, output: Any) -> None:
            entered_TH: Tensor = args[0] if args else kwargs["hidden_states"]
            left_TH: Tensor = output[0] if isinstance(output, tuple) else output
            cosine_T = torch.cosine_similarity(entered_TH.float(), left_TH.float(), dim=-1)
            sums[place] += (1 - cosine_T).sum().item()

        return add

    handles = [layer.register_forward_hook(hook_of(place), with_kwargs=True) for place, layer in enumerate(layers)]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _device(model: PreTrainedModel) -> torch.device:
    """The GPU where the model fits with room for its activations, else where it is."""
    needed = 1.2 * model.get_memory_footprint()
    return torch.device("cuda") if torch.cuda.is_available() and needed < torch.cuda.mem_get_info()[0] else model.device

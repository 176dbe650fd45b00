"""A model's next-token distributions over text that exists (teacher forcing).

Axes: B batch, T tokens of a padded row, N answer tokens, V vocabulary, H hidden.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.models import language_model
from pipeline.models.forward.head import Head, decoder_of, dense_logits, input_device

CHUNK_TOKENS = 512  # tokens whose vocabulary logits are held at once, of each model
WINDOW_TEXTS = 1024  # texts held at once, among which those of like length are found


@dataclass(frozen=True)
class ForcedResponse:
    """An answer to be scored token by token, given its prompt; texts of one prompt share `cluster`.

    `groups` is what else a text may be told apart by: {"category": "code", "turn": "2"}.
    """

    cluster: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    groups: Mapping[str, str] = field(default_factory=dict)


def load(folder: Path, dtype: str, who: str) -> Any:
    """The language model in a folder, ready to be asked; several GPUs share one that is too large for one.

    `who` is the stage and the model, for messages. Raises UserError if it can't be loaded, or its head is not known.
    """
    spread = {"device_map": "auto"} if torch.cuda.is_available() else {}
    return language_model.load(folder, dtype, who, **spread)


def batches(texts: Iterable[ForcedResponse], batch_tokens: int) -> Iterator[list[ForcedResponse]]:
    """Texts of like length together, at most `batch_tokens` padded tokens a batch; WINDOW_TEXTS are held at once."""
    coming = iter(texts)
    while window := sorted(islice(coming, WINDOW_TEXTS), key=_length):
        batch: list[ForcedResponse] = []
        for text in window:
            if batch and (len(batch) + 1) * _length(text) > batch_tokens:
                yield batch
                batch = []
            batch.append(text)
        yield batch


def _length(text: ForcedResponse) -> int:
    return len(text.prompt_token_ids) + len(text.token_ids)


def answer_states(model: Any, batch: list[ForcedResponse]) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """`(hidden_NH, owner_N)`: the state that predicts each answer token, and which text of the batch it is of."""
    device = input_device(model)
    T = max(len(text.prompt_token_ids) + len(text.token_ids) for text in batch)
    input_ids_BT = torch.zeros((len(batch), T), dtype=torch.long)
    attention_BT = torch.zeros_like(input_ids_BT)
    predicts_BT = torch.zeros((len(batch), T), dtype=torch.bool)
    for b, text in enumerate(batch):
        P, A = len(text.prompt_token_ids), len(text.token_ids)
        input_ids_BT[b, : P + A] = torch.tensor(text.prompt_token_ids + text.token_ids)
        attention_BT[b, : P + A] = 1
        predicts_BT[b, P - 1 : P + A - 1] = True  # the state at t − 1 predicts token t
    hidden_BTH = decoder_of(model)(
        input_ids=input_ids_BT.to(device), attention_mask=attention_BT.to(device), use_cache=False
    ).last_hidden_state
    return hidden_BTH[predicts_BT.to(hidden_BTH.device)], predicts_BT.nonzero()[:, 0].numpy()


def logprobs(head: Head, hidden_NH: Tensor, vocab_size: int, device: torch.device) -> Tensor:
    """Log-probs of the first `vocab_size` tokens after each state, float32, nats: (N, V), on the device."""
    return dense_logits(hidden_NH, head)[:, :vocab_size].to(device).float().log_softmax(dim=1)

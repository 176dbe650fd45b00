"""The rows that travel between stages, and the alignment contract.

Alignment contract. For a response with `prompt_token_ids` (P of them) and `token_ids` (T of them):

- Row t of its log-probs, 0 ≤ t < T, is the teacher distribution from which `token_ids[t]` was drawn, given exactly
  `prompt_token_ids + token_ids[:t]`.
- Natural logarithm, temperature 1, before top-p, top-k and penalties, over the whole vocabulary
  (vLLM's `logprobs_mode="raw_logprobs"`), so the mass outside the stored support is known, and stored.
- Token ids are kept as the teacher produced them, the end-of-turn token included; nothing is ever re-tokenised.
- Hence the student's hidden state at position P − 1 + t of `prompt_token_ids + token_ids` is matched with row t.
"""

import pyarrow as pa

from pipeline import codec

ALIGNMENT = "row t of logprobs: the teacher's distribution given prompt_token_ids + token_ids[:t]; nats, temperature 1"

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
TOKEN_IDS = pa.list_(pa.int32())

PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),  # hash of the messages: the same prompt has the same id in every run
        ("messages", pa.list_(MESSAGE)),
        ("category", pa.string()),
        ("split", pa.string()),  # train | held_out
        ("source", pa.string()),  # file:line or dataset:row
        ("prompt_token_ids", TOKEN_IDS),  # the chat template applied; what the teacher sees
    ]
)

RESPONSES = pa.schema(
    [
        ("response_id", pa.string()),  # prompt_id-sample
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("text", pa.string()),  # decoded once, special tokens left out; for people, never for training
        ("finish_reason", pa.string()),  # stop | length
        ("prompt_token_ids", TOKEN_IDS),
        ("token_ids", TOKEN_IDS),
        ("token_logprobs", pa.list_(pa.float32())),  # nats, of the sampled tokens
        ("logprobs", codec.TYPE),
    ]
)

DECISIONS = pa.schema(
    [
        ("response_id", pa.string()),
        ("kept", pa.bool_()),
        ("reasons", pa.list_(pa.string())),  # each rule that said no, in the order of the rules
        (
            "scores",
            pa.map_(pa.string(), pa.float64()),
        ),  # what each rule measured; thresholds are in the manifest
    ]
)

SAMPLES = pa.schema(
    [
        ("item_id", pa.string()),
        ("category", pa.string()),
        ("turn", pa.int32()),  # from 0
        ("arm", pa.string()),  # teacher | student | sft_only | untrained
        ("question", pa.string()),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("num_tokens", pa.int32()),
        ("prompt_token_ids", TOKEN_IDS),
        ("token_ids", TOKEN_IDS),
    ]
)

ARMS = ("teacher", "student", "sft_only", "untrained")
STAGES = ("prepare", "generate", "filter", "train", "evaluate", "export")

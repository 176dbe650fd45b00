"""The rows that travel between stages, and the alignment contract.

Alignment contract. For a response with `prompt_token_ids` (P of them) and `token_ids` (T of them):

- Row t of its log-probs, 0 ≤ t < T, is the teacher distribution from which `token_ids[t]` was drawn, given exactly
  `prompt_token_ids + token_ids[:t]`.
- Natural logarithm, temperature 1, before top-p, top-k and penalties, over the whole vocabulary
  (vLLM's `logprobs_mode="raw_logprobs"`), so the mass outside the stored support is known, and stored.
- Token ids are kept as the teacher produced them, the end-of-turn token included; nothing is ever re-tokenised.
- Hence the student's hidden state at position P − 1 + t of `prompt_token_ids + token_ids` is matched with row t.
"""

import hashlib

import pyarrow as pa

from pipeline import codec

ALIGNMENT = "row t of logprobs: the teacher's distribution given prompt_token_ids + token_ids[:t]; nats, temperature 1"
UNCATEGORISED = "uncategorised"  # the category of what has none

MESSAGE = pa.struct(
    [
        ("role", pa.string()),  # system | user | assistant | tool
        ("content", pa.string()),
        ("tool_calls", pa.string()),  # JSON of an assistant's calls, as OpenAI has them; null where there are none
        ("tool_call_id", pa.string()),  # which call a tool's message answers
        ("name", pa.string()),  # of the tool
        ("reasoning_content", pa.string()),  # an assistant's reasoning, where it is apart from the content
    ]
)
TOKEN_IDS = pa.list_(pa.int32())

PROMPTS = pa.schema(
    [
        ("conversation_id", pa.string()),  # shared by prompts that are no independent evidence: a conversation's turns
        ("prompt_id", pa.string()),  # hash of the messages (and of the answer to be scored): the same in every run
        ("messages", pa.list_(MESSAGE)),
        ("tools", pa.string()),  # JSON list of the tools the teacher may call; null where there are none
        ("category", pa.string()),
        ("split", pa.string()),  # train | held_out
        ("source", pa.string()),  # file:line or dataset:row; of a prompt that the teacher wrote, that of its draft
        ("licence", pa.string()),  # of the row, or of its source; null where neither says
        ("redacted", pa.map_(pa.string(), pa.int32())),  # personal data taken out: how many of each kind
        ("safety", pa.map_(pa.string(), pa.float64())),  # labels, each with its score: see pipeline/screening/safety.py
        ("method", pa.string()),  # source | magpie | self_instruct | evolve | documents: the last four the teacher's
        ("parents", pa.list_(pa.string())),  # prompt_ids that the teacher was shown, or the passage's place
        ("template", pa.string()),  # hash of the Jinja template that the prompt, or the request for it, was made with
        ("prompt_token_ids", TOKEN_IDS),  # the chat template applied; what the teacher sees
        ("completion_token_ids", TOKEN_IDS),  # the answer to be scored; null where the teacher gives its own
    ]
)

RESPONSES = pa.schema(
    [
        ("response_id", pa.string()),  # prompt_id-sample
        ("conversation_id", pa.string()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("text", pa.string()),  # decoded once, special tokens and reasoning left out; never trained on
        ("reasoning", pa.string()),  # the text between the reasoning's tags; null where the teacher did not reason
        ("finish_reason", pa.string()),  # stop | length
        ("prompt_token_ids", TOKEN_IDS),
        ("token_ids", TOKEN_IDS),
        ("token_logprobs", pa.list_(pa.float32())),  # nats, of the sampled tokens
        ("logprobs", codec.TYPE),
        # The answer begins with this many tokens of reasoning, its tags included; what is between the tags is
        # token_ids[reasoning_start:reasoning_end]. All 0 where there is none.
        ("reasoning_tokens", pa.int32()),
        ("reasoning_start", pa.int32()),
        ("reasoning_end", pa.int32()),
    ]
)

SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("kind", pa.string())])  # from start to before end

DECISIONS = pa.schema(
    [
        ("response_id", pa.string()),
        ("kept", pa.bool_()),
        ("reasons", pa.list_(pa.string())),  # each rule that said no, in the order of the rules
        (
            "scores",
            pa.map_(pa.string(), pa.float64()),
        ),  # what each rule measured; thresholds are in the manifest
        ("masked_spans", pa.list_(SPAN)),  # tokens of the response that no loss may touch: they hold personal data
        ("safety", pa.map_(pa.string(), pa.float64())),  # labels of the answer, each with its score
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

TASKS = pa.schema(
    [
        *SAMPLES,
        # What the item asks of this turn's answer (see pipeline/eval_sets/checkers), and whether it was done.
        ("checks", pa.list_(pa.struct([("kind", pa.string()), ("passed", pa.bool_())]))),
    ]
)

HARNESS = pa.schema(  # items of lm-evaluation-harness
    [
        ("arm", pa.string()),
        ("task", pa.string()),
        ("metric", pa.string()),  # its name in scores.json
        ("doc_id", pa.int64()),
        ("prompt", pa.string()),
        ("target", pa.string()),
        ("answer", pa.string()),  # as JSON: a text, or each choice's log-likelihood and whether it is the greedy one
        ("value", pa.float64()),  # null where the metric is not of single items
    ]
)

RISKS = pa.schema(
    [
        *SAMPLES,
        # What the rule found: 1 where the risk is there, of an opening the tokens recited; null of a pair's answer.
        ("score", pa.float64()),
    ]
)

ARMS = ("teacher", "student", "sft_only", "untrained", "other")
STAGES = ("prepare", "generate", "filter", "train", "evaluate", "export")


def is_held_out(identifier: str, held_out_frac: float) -> bool:
    """Whether a prompt is on the held-out side: its own hash decides, so it never changes side as a corpus grows."""
    return is_drawn("split", identifier, held_out_frac)


def is_drawn(salt: str, identifier: str, frac: float) -> bool:
    """Whether an id is in a share that its own hash decides: one that is stays so if the share grows."""
    return int(hashlib.sha256(f"{salt} {identifier}".encode()).hexdigest()[:15], 16) < frac * 16**15


def split_of(side: str, method: str, held_out_frac: float) -> str:
    """train or held_out, by the id of its conversation; what the teacher wrote is always to train on."""
    return "held_out" if method == "source" and is_held_out(side, held_out_frac) else "train"

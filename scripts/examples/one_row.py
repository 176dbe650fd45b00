"""One prompt, from text to gradient, in plain steps: what Retort does to each row, with nothing hidden.

    .venv/bin/python scripts/examples/one_row.py

Read it from top to bottom. Each step prints what it made, and compares it with the function of Retort that does the
same for a whole corpus. It takes some seconds on a CPU, uses the bundled teacher and asks no network.

Axes: T tokens of the response, K stored log-probs a token, V vocabulary, H hidden size.
"""

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline import codec
from pipeline.models.forward.head import head_of, support_logprobs
from pipeline.models.lookup import demo_path, quiet_transformers
from pipeline.models.pruning import keep_layers
from pipeline.train.losses.divergences import buckets, forward_kl_nats

K, MAX_TOKENS = 50, 16
quiet_transformers()
torch.manual_seed(0)


def step(number: int, what: str) -> None:
    print(f"\n{number}. {what}")


# ── 1. The teacher, and a student: the same model with six layers taken out ──────────────────────────────────────────
folder = demo_path()
tokenizer = AutoTokenizer.from_pretrained(folder)
teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
num_layers = teacher.config.num_hidden_layers
student = keep_layers(student, [layer for layer in range(num_layers) if not 12 <= layer < 18])
step(1, "Two models")
print(f"   teacher: {num_layers} layers; student: {student.config.num_hidden_layers} of them")

# ── 2. The prompt, as the teacher sees it: the chat template turns messages into token ids (prepare) ─────────────────
messages = [{"role": "user", "content": "Why is the sea salt?"}]
prompt_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
P = len(prompt_ids)
step(2, "The prompt")
print(f"   {P} token ids; the last ones open the teacher's turn: {tokenizer.decode(prompt_ids[-4:])!r}")

# ── 3. The teacher answers, token by token, and we keep the distribution behind each token (generate) ────────────────
# Row t is the distribution given prompt_ids + token_ids[:t]. Token t is then drawn from it. vLLM does this faster.
token_ids: list[int] = []
rows: list[torch.Tensor] = []
with torch.no_grad():
    while len(token_ids) < MAX_TOKENS and token_ids[-1:] != [tokenizer.eos_token_id]:
        logits_V = teacher(torch.tensor([prompt_ids + token_ids])).logits[0, -1]
        row_V = torch.log_softmax(logits_V.double(), dim=-1)  # natural log, temperature 1, whole vocabulary
        token_ids.append(int(torch.multinomial(row_V.exp(), 1)))
        rows.append(row_V)
teacher_TV = torch.stack(rows)
T, V = teacher_TV.shape
step(3, "The response")
print(f"   {T} tokens, a distribution over {V} tokens behind each: {tokenizer.decode(token_ids)!r}")

# ── 4. What is stored: the K likeliest tokens of each row (the support), and the mass of all others (the tail) ───────
logprobs_TK, ids_TK = teacher_TV.topk(K, dim=1)
log_tail_T = torch.log((-torch.expm1(logprobs_TK.logsumexp(dim=1))).clamp_min(1e-30))
step(4, "The support and its tail")
print(f"   the {K} best of each row hold {logprobs_TK.exp().sum(dim=1).mean():.1%} of the mass on average")

# ── 5. Packed and unpacked again: about two bytes an entry on disk (codec.py) ────────────────────────────────────────
packed = codec.encode(
    ids_TK.numpy().astype(np.int32), logprobs_TK.numpy().astype(np.float32), log_tail_T.numpy().astype(np.float32)
)
stored_ids_TK, stored_TK, stored_tail_T = (torch.from_numpy(array) for array in codec.decode(packed))
num_bytes = sum(len(value) for value in packed.values() if isinstance(value, bytes))
mass_T = stored_TK.double().exp().sum(dim=1) + stored_tail_T.double().exp()
assert torch.allclose(mass_T, torch.ones_like(mass_T), atol=1e-5), "each row and its tail sum to 1"
step(5, "Packed")
print(f"   {num_bytes / T:.0f} bytes a token before zstd; as float32 and int32 it would be {K * 8}")

# ── 6. The student reads the same ids, and gives its own distribution at the same places (train) ─────────────────────
# The state at position P - 1 + t has read prompt_ids + token_ids[:t], exactly as the teacher had: so it meets row t.
input_ids = torch.tensor([prompt_ids + token_ids])
with torch.no_grad():
    hidden_TH = student.model(input_ids).last_hidden_state[0, P - 1 : P - 1 + T]
    student_TV = torch.log_softmax(student.lm_head(hidden_TH).double(), dim=-1)
step(6, "The student at the same places")
agreement = (student_TV.argmax(dim=1) == teacher_TV.argmax(dim=1)).double().mean()
print(f"   it has the teacher's first choice for {agreement:.0%} of the tokens")

# ── 7. KL(teacher ‖ student) on the support and the tail: Σ p (log p − log q), the tail as one more entry ────────────
q_support_TK = student_TV.gather(1, stored_ids_TK.long())
q_tail_T = torch.log(-torch.expm1(q_support_TK.logsumexp(dim=1)))
p_TC = torch.cat([stored_TK.double(), stored_tail_T.double()[:, None]], dim=1).clamp_min(-60)  # a tail of 0 is −inf
q_TC = torch.cat([q_support_TK, q_tail_T[:, None]], dim=1)
by_hand_T = (p_TC.exp() * (p_TC - q_TC)).sum(dim=1)
exact_T = (teacher_TV.exp() * (teacher_TV - student_TV)).sum(dim=1)
step(7, "The divergence")
print(f"   {by_hand_T.mean():.4f} nats a token on {K} entries and the tail; {exact_T.mean():.4f} over all {V}")
assert (by_hand_T.mean() <= exact_T.mean() + 2e-3).item(), "merging tokens into a tail can only lower a divergence"

# ── 8. The same from Retort's head, which never holds T × V logits at once ───────────────────────────────────────────
labels_T = torch.tensor(token_ids)
hidden_TH = hidden_TH.clone().requires_grad_()
with torch.enable_grad():
    ours = support_logprobs(hidden_TH, head_of(student), stored_ids_TK.long(), labels_T, 8)
    kl_T = forward_kl_nats(*buckets(stored_TK, stored_tail_T, ours.support_NK, ours.log_tail_N))
    ce_T = -ours.label_N
torch.testing.assert_close(kl_T.double(), by_hand_T, atol=1e-4, rtol=1e-4)
torch.testing.assert_close(ce_T.double(), -student_TV[torch.arange(T), labels_T], atol=1e-4, rtol=1e-4)
step(8, "The head of Retort")
print(f"   the same KL, and the cross-entropy of the {T} tokens: {ce_T.mean():.4f} nats")

# ── 9. The gradient: of KL it is q − p on the support; the tail's share falls on all other tokens as q has them ──────
kl_T.sum().backward()
q_TV = student_TV.exp()
target_TV = q_TV * (stored_tail_T.double() - q_tail_T).exp()[:, None]  # the tail, shared out as the student has it
target_TV.scatter_(1, stored_ids_TK.long(), stored_TK.double().exp())
by_hand_TH = (q_TV - target_TV) @ student.lm_head.weight.detach().double()
assert hidden_TH.grad is not None
torch.testing.assert_close(hidden_TH.grad.double(), by_hand_TH, atol=1e-4, rtol=1e-3)
step(9, "The gradient")
print(
    f"   (q − p) · W, as autograd has it: shape {tuple(by_hand_TH.shape)}, largest entry {by_hand_TH.abs().max():.3f}"
)

# ── 10. A step against it: the student comes nearer ──────────────────────────────────────────────────────────────────
with torch.no_grad():
    nearer_TH = hidden_TH - 0.05 * hidden_TH.grad
    after = support_logprobs(nearer_TH, head_of(student), stored_ids_TK.long(), labels_T, 8)
    after_T = forward_kl_nats(*buckets(stored_TK, stored_tail_T, after.support_NK, after.log_tail_N))
assert (after_T.mean() < kl_T.mean()).item()
step(10, "One step")
print(f"   KL {kl_T.mean():.4f} → {after_T.mean():.4f}. Training does this to the weights, for every row of a run.")

"""Code for cards: it runs as it stands, once the folder is named."""

import json
import shlex
from typing import Any

ASKED = "What is the capital of France?"


def of_model(template_kwargs: dict[str, Any], dtype: str) -> str:
    """How to ask the exported student, in transformers and in vLLM, with the template's settings of the run."""
    how = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt", **template_kwargs}
    kwargs = shlex.quote(json.dumps(template_kwargs))
    served = f" --default-chat-template-kwargs {kwargs}" if template_kwargs else ""
    slow = ""
    if dtype != "float32":
        slow = f'\nMost CPUs are slow in {dtype}: there, give `dtype="float32"`, and `--dtype float32` to vLLM.\n'
    return f"""## How to use it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the path of this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
messages = [{{"role": "user", "content": "{ASKED}"}}]
how = {how!r}
prompt = tokenizer.apply_chat_template(messages, **how)
tokens = model.generate(**prompt, max_new_tokens=200)
print(tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```

```bash
vllm serve .{served}   # an OpenAI-compatible server
```
{slow}"""


def of_corpus(folder: str, split: str, with_logprobs: bool) -> str:
    """How to load the exported corpus, and to decode its log-probs if they are there."""
    load = f"""from datasets import load_dataset

folder = "{folder}"  # the path of this folder (`datasets` does not take "."), or its name on the hub
row = load_dataset(folder, split="{split}")[0]
print(row["messages"])"""
    if not with_logprobs:
        return f"## How to load it\n\n```python\n{load}\n```\n\nLog-probs were left out of this copy.\n"
    return f"""## How to load it

```python
{load}

from pipeline.codec import decode  # of Retort

ids, logprobs, log_tail = decode(row["logprobs"])  # (N, K), (N, K), (N,): natural logs; a row and its tail sum to 1
# a row with fewer than K entries is filled with its first id at -inf
```

Row t is the teacher's distribution from which `token_ids[t]` was drawn, given `prompt_token_ids + token_ids[:t]`,
at temperature 1 and before top-p and top-k. The docstring of `pipeline/codec.py` describes the format that `decode`
reads.
"""

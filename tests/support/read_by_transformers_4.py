"""Run by transformers 4: prints as JSON what it makes of the folders given, of each tokenizer and config."""

import json
import sys

from transformers import AutoConfig, AutoTokenizer

TEXTS = (" two  spaces", "it's 2024,\n\n\tdef f(x):  你好 🙂", "naïve . end", "<|im_start|>user<|im_end|>")
MESSAGES = [{"role": "user", "content": "Hi, 你好 🙂!"}, {"role": "assistant", "content": "Hello."}]
MESSAGES += [{"role": "user", "content": "def f(x):\n    return 2*x"}]


def read(folder):
    """Tokenizer and config as values that JSON has, the same under both versions if they agree."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = AutoConfig.from_pretrained(folder).get_text_config()
    ids = [tokenizer(each).input_ids for each in TEXTS]
    return {
        "ids": ids,
        "bare_ids": [tokenizer(each, add_special_tokens=False).input_ids for each in TEXTS],
        "texts": [tokenizer.decode(each) for each in ids],
        "without_special": [tokenizer.decode(each, skip_special_tokens=True) for each in ids],
        "inputs": sorted(tokenizer("a")),
        "rendered": tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False),
        "special": sorted(set(tokenizer.all_special_ids)),
        "ends": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "longest": tokenizer.model_max_length,
        "num_tokens": len(tokenizer),
        "layers": [text.num_hidden_layers, getattr(text, "layer_types", None)],
        "cache": text.use_cache,
        "vocab_size": text.vocab_size,
        "tied": text.tie_word_embeddings,
        "dtype": str(text.dtype).removeprefix("torch."),
    }


def rotary(folder):
    """What transformers 4 has of rotary settings."""
    text = AutoConfig.from_pretrained(folder).get_text_config()
    names = ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor")
    return {name: getattr(text, name, None) for name in names}


if __name__ == "__main__":
    print(json.dumps({folder: {**read(folder), "rotary": rotary(folder)} for folder in sys.argv[1:]}))

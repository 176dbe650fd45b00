"""Tiny random models of the architectures that people distil, made in no time, with heads that are never plain.

Scales, caps and biases are far from neutral, so that whatever leaves one out gives a figure that is clearly wrong.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from pipeline.models.language_model import attention_of

HIDDEN, LAYERS, HEADS, HEAD_DIM, POSITIONS = 32, 3, 4, 8, 512
HEAD_GAIN = 2.0  # logits far enough apart that a cap bends them

SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
WIDE = {"head_dim": HEAD_DIM}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK = EXPERTS | LATENT | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
SLIDING = {"sliding_window": 16}
MIXED = SLIDING | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA = WIDE | MIXED | {"query_pre_attn_scalar": HEAD_DIM}
PATCHES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN = PATCHES | {"image_size": 28, "patch_size": 14}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA4 = WIDE | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "moe_layers": [1]}
LLAMA4 |= {"attention_chunk_size": 16, "layer_types": ["chunked_attention", "full_attention", "chunked_attention"]}
LLAMA4 |= {"no_rope_layers": [1, 0, 1]}
GEMMA4 = MIXED | WIDE | {"global_head_dim": HEAD_DIM, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 4.0}
GEMMA4 |= {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
SEEN4 = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_output_dim": 16}
SEEN4 |= {"projector_input_dim": 16, "projector_output_dim": 16}
MROPE = ROPE | {"mrope_section": [1, 1, 2]}


@dataclass(frozen=True)
class Family:
    """What a transformers config of the family says, beyond SIZES.

    `vision` is the config of the tower beside the language model, which `settings` then describe.
    """

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] | None = None
    whole: dict[str, Any] = field(default_factory=dict)  # of a config with a tower: what stands beside both


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", WIDE),
    "llama-tied": Family("llama", WIDE | {"tie_word_embeddings": True}),
    "mistral": Family("mistral", WIDE | SLIDING),
    "qwen2": Family("qwen2", MIXED | {"use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": Family("qwen3", WIDE | {"tie_word_embeddings": True}),
    "qwen3-moe": Family("qwen3_moe", WIDE | EXPERTS | {"num_experts": 4, "mlp_only_layers": [1]}),
    "mixtral": Family("mixtral", WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma": Family("gemma", WIDE),
    "gemma2": Family("gemma2", GEMMA | {"final_logit_softcapping": 4.0, "attn_logit_softcapping": 5.0}),
    "gemma3-text": Family("gemma3_text", GEMMA | {"final_logit_softcapping": 4.0}),
    "granite": Family(
        "granite",
        {
            "logits_scaling": 0.3,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "granite-moe": Family("granitemoe", {"logits_scaling": 0.3, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "cohere": Family("cohere", {"logit_scale": 0.4}),
    "cohere2": Family("cohere2", {"logit_scale": 0.4} | MIXED),
    "phi": Family("phi", {"partial_rotary_factor": 0.5}),
    "phi3": Family("phi3"),
    "olmo2": Family("olmo2"),
    "olmo3": Family("olmo3", MIXED),
    "gpt-neox": Family("gpt_neox", {"rotary_pct": 0.25}),
    "stablelm": Family("stablelm", {"partial_rotary_factor": 0.5}),
    "nemotron": Family("nemotron", WIDE | {"partial_rotary_factor": 0.5}),
    "hyperclovax": Family("hyperclovax", {"logits_scaling": 2.5, "use_post_norm": True}),
    "smollm3": Family("smollm3", {"no_rope_layers": [1, 0, 1], "no_rope_layer_interval": 2}),
    "minicpm3": Family("minicpm3", LATENT | {"dim_model_base": 8, "num_key_value_heads": HEADS}),
    "deepseek-v3": Family("deepseek_v3", DEEPSEEK | {"num_key_value_heads": HEADS}),
    "glm4": Family("glm4", WIDE | {"partial_rotary_factor": 0.5}),
    "exaone4": Family("exaone4", WIDE | MIXED | {"sliding_window_pattern": 2}),
    "ernie4.5": Family("ernie4_5", WIDE | {"use_bias": True}),
    "gpt2": Family("gpt2"),
    "opt": Family("opt", {"ffn_dim": 48, "word_embed_proj_dim": HIDDEN}),
    "gpt-oss": Family(
        "gpt_oss",
        WIDE | MIXED | {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": ROPE},
    ),
    "llama4-text": Family("llama4_text", LLAMA4),
    "gemma4-text": Family("gemma4_text", GEMMA4),
    "gemma3": Family("gemma3", GEMMA, {"model_type": "siglip_vision_model", **SEEN}, {"mm_tokens_per_image": 4}),
    "mistral3": Family("mistral3", {"model_type": "mistral", **WIDE}, {"model_type": "pixtral", **SEEN}),
    "llava": Family("llava", {"model_type": "llama", **WIDE}, {"model_type": "clip_vision_model", **SEEN}),
    "aya-vision": Family(
        "aya_vision",
        {"model_type": "cohere2", "logit_scale": 0.4, **MIXED},
        {"model_type": "siglip_vision_model", **SEEN},
    ),
    "llama4": Family("llama4", LLAMA4, {"hidden_size": 16, "intermediate_size": 24, **SEEN4}),
    "qwen2.5-vl": Family(
        "qwen2_5_vl",
        {"rope_parameters": MROPE},
        {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": HIDDEN},
    ),
    "qwen3-vl": Family(
        "qwen3_vl",
        WIDE | {"rope_parameters": MROPE},
        {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "deepstack_visual_indexes": [0],
        },
    ),
}


def config_of(name: str, vocab_size: int, **overrides: Any) -> Any:
    """The transformers config of a family; `overrides` are settings of its language model."""
    family = FAMILIES[name]
    text = SIZES | {"vocab_size": vocab_size} | family.settings | overrides
    if family.vision is None:
        return AutoConfig.for_model(family.model_type, **text)
    beside = {key: text[key] for key in ("tie_word_embeddings",) if key in text}
    return AutoConfig.for_model(
        family.model_type, text_config=text, vision_config=family.vision, **family.whole, **beside
    )


def build(name: str, vocab_size: int, seed: int = 0, **overrides: Any) -> Any:
    """A random model of a family, in float32 and ready to be asked."""
    config = config_of(name, vocab_size, **overrides)
    kind = AutoModelForCausalLM if FAMILIES[name].vision is None else AutoModelForImageTextToText
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config, dtype=torch.float32, attn_implementation=attention_of(config))
        for weight in model.parameters():  # norms and biases too, which begin as ones and zeros
            if weight.dim() == 1:
                weight.data.add_(0.3 * torch.randn_like(weight))
        model.get_output_embeddings().weight.data.mul_(HEAD_GAIN)
    return model.eval()


def make(name: str, folder: Path, vocab_size: int, seed: int = 0, **overrides: Any) -> None:
    """Save a random model of a family: safetensors, config.json, generation_config.json.

    `overrides` are settings of its language model, such as eos_token_id, num_hidden_layers or layer_types.
    """
    build(name, vocab_size, seed, **overrides).save_pretrained(folder)

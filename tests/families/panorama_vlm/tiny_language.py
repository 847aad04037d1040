"""A tokenizer and a language model of a few thousand weights, for tests."""

from __future__ import annotations

from typing import Any

import torch

from stageline.families.panorama_vlm.data.tokenizer import train_tokenizer

TEXTS = [
    f"user\nWhat colour is at the {direction}?\nassistant\nThe {direction} is {colour}."
    for direction in ("front", "right", "back", "left")
    for colour in ("red", "green", "blue", "yellow")
]
THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""What Qwen3's own template does with thinking switched off: an empty block of thoughts before the answer."""


def tiny_tokenizer() -> Any:
    return train_tokenizer(TEXTS)


def tiny_model(tokenizer: Any, seed: int = 0) -> Any:
    """A random Qwen3 in eval mode, whose vocabulary is the tokenizer's."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.15,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval()

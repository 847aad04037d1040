"""The language model and its adapters: Qwen3 of transformers, LoRA of peft, injected in place.

Adapters are tensors of the model like any other (`language.….q_proj.lora_A.default.weight`); base weights then bear
the name `….base_layer.weight`. The folder `lora_weights/` for other programs is made from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from stageline.errors import ConfigError

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaConfig
    from stageline.stage import Stage

PREFIX = "language."
ADAPTER = "default"
BASE_LAYER = ".base_layer."
LORA_FOLDER = "lora_weights"
TINY_INITIALIZER_RANGE = 0.15
"""With the usual 0.02, tied embeddings and a frozen base the logits stay so small that no adapter can learn."""


def tiny_language_config(num_tokens: int, pad_id: int, eos_id: int) -> Qwen3Config:
    """A language model of two layers, 64 wide. num_tokens: of the tokenizer.  pad_id, eos_id: of its special tokens."""
    return Qwen3Config(
        vocab_size=num_tokens,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=TINY_INITIALIZER_RANGE,
        pad_token_id=pad_id,
        eos_token_id=eos_id,
        bos_token_id=None,
    )


def language_config(plain: Mapping[str, Any], where: str) -> Qwen3Config:
    """The config of a language model from its `config.json`. ConfigError for a model of another kind.

    plain: the file, parsed.  where: its path.
    """
    kind = plain.get("model_type")
    if kind != "qwen3":
        raise ConfigError(
            f"{where}: model_type {kind!r}, expected 'qwen3'",
            remedy="set models.language_model_name to a Qwen3 model, e.g. Qwen/Qwen3-0.6B",
        )
    return Qwen3Config(**{key: value for key, value in plain.items() if key != "model_type"})


def build_language(config: Qwen3Config, attention: str) -> Qwen3ForCausalLM:
    """The language model of a config, randomly initialised. attention: `sdpa`, `eager` or `flash_attention_2`."""
    config._attn_implementation = attention
    return Qwen3ForCausalLM(config)


def lora_config(config: PanoramaConfig) -> LoraConfig:
    """peft's own config of the adapters."""
    lora = config.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=list(lora.target_modules),
        use_rslora=lora.use_rslora,
        init_lora_weights=lora.init_lora_weights,
    )


def add_adapters(language: nn.Module, config: PanoramaConfig) -> None:
    """Put fresh adapters beside the layers that `lora.target_modules` names, in place.

    ConfigError unless every layer of the model got one adapter for each of those names.
    """
    inject_adapter_in_model(lora_config(config), language, ADAPTER)  # type: ignore[arg-type]
    names = [name for name, _ in language.named_parameters() if ".lora_" in name]
    wanted = 2 * int(language.config.num_hidden_layers) * len(config.lora.target_modules)
    if len(names) != wanted:
        raise ConfigError(
            f"lora.target_modules {list(config.lora.target_modules)} gave {len(names)} adapter tensors, expected "
            f"{wanted}: 2 for each of {len(config.lora.target_modules)} names in each layer",
            remedy="name linear layers that every block has: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, "
            "down_proj",
        )


def base_name(name: str) -> str:
    """The name that a tensor of the language model has in its own files. name: in a model with or without adapters."""
    return name.replace(BASE_LAYER, ".")


def exports(
    config: PanoramaConfig, stage: Stage, tensors: Mapping[str, Tensor]
) -> dict[str, bytes | Mapping[str, Tensor]]:
    """`lora_weights/` in PEFT's layout, made of a stage's own tensors; {} where it has no adapters.

    config: the stage's.  tensors: full name -> tensor on the CPU.
    """
    del stage
    found = {
        f"base_model.model.{name.removeprefix(PREFIX).replace(f'.{ADAPTER}.', '.')}": tensor
        for name, tensor in tensors.items()
        if name.startswith(PREFIX) and ".lora_" in name
    }
    if not found:
        return {}
    plain = lora_config(config).to_dict()
    plain |= {
        "base_model_name_or_path": config.models.language_model_name,
        "revision": config.models.language_revision or None,
        "inference_mode": True,
        "target_modules": sorted(config.lora.target_modules),
    }
    text = json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n"
    return {f"{LORA_FOLDER}/adapter_config.json": text.encode(), f"{LORA_FOLDER}/adapter_model.safetensors": found}

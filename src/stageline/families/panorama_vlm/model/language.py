"""The language model and its adapters: Qwen3 of transformers, LoRA of peft, injected in place.

Adapters are tensors of the model like any other (`language.….q_proj.lora_A.default.weight`); base weights then bear
the name `….base_layer.weight`. The folder `lora_weights/` for other programs is made from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stageline.errors import ConfigError, Faults
from stageline.families.panorama_vlm.config.architectures import LanguageShape, language_numbers

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from stageline.families.panorama_vlm.config import PanoramaVlmConfig
    from stageline.stage import Stage

PREFIX = "language."
ADAPTER = "default"
BASE_LAYER = ".base_layer."
LORA_FOLDER = "lora_weights"


def language_config(shape: LanguageShape) -> Qwen3Config:
    """transformers' config of a language model."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tie_embeddings,
        initializer_range=shape.initializer_range,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def check_language(plain: Mapping[str, Any], shape: LanguageShape, where: str) -> None:
    """ConfigError where a model's `config.json` is of another kind or size than the config says.

    plain: the file, parsed.  where: its path.
    """
    faults = Faults(
        ConfigError, where, "name another model in model.language_model_name, or mend model.language_config"
    )
    if plain.get("model_type") != "qwen3":
        faults.add(f"model_type {plain.get('model_type')!r}, expected qwen3")
    for key, value in language_numbers(plain).items():
        if value != getattr(shape, key):
            faults.add(f"{key} is {value}, the config says {getattr(shape, key)}")
    faults.raise_if_any()


def build_language(config: Qwen3Config, attention: str) -> Qwen3ForCausalLM:
    """The language model of a config, randomly initialised.

    attention: `auto` (sdpa), `sdpa`, `eager` or `flash_attention_2`.
    """
    from transformers import Qwen3ForCausalLM

    config._attn_implementation = "sdpa" if attention == "auto" else attention
    return Qwen3ForCausalLM(config)


def lora_config(config: PanoramaVlmConfig) -> LoraConfig:
    """peft's own config of the adapters."""
    from peft import LoraConfig  # takes seconds to import, and two of three stages have no adapters

    lora = config.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it; fractions are fine
        lora_dropout=lora.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=list(lora.target_modules),
        use_rslora=lora.use_rslora,
        init_lora_weights=lora.init_lora_weights,
    )


def add_adapters(language: nn.Module, config: PanoramaVlmConfig) -> None:
    """Put fresh adapters beside the layers that `lora.target_modules` names, in place.

    ConfigError unless every layer of the model got one adapter for each of those names.
    """
    from peft import inject_adapter_in_model

    inject_adapter_in_model(lora_config(config), language, ADAPTER)
    names = [name for name, _ in language.named_parameters() if ".lora_" in name]
    wanted = 2 * config.model.language.num_layers * len(config.lora.target_modules)
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
    config: PanoramaVlmConfig, stage: Stage, tensors: Mapping[str, Tensor]
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
    plain = lora_config(config).to_dict()  # type: ignore[no-untyped-call]
    plain |= {
        "base_model_name_or_path": config.model.language_model_name,
        "revision": config.model.language_model_revision or None,
        "inference_mode": True,
        "target_modules": sorted(config.lora.target_modules),
    }
    text = json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n"
    return {f"{LORA_FOLDER}/adapter_config.json": text.encode(), f"{LORA_FOLDER}/adapter_model.safetensors": found}

"""The tiny language model and its tokenizer: functions of a fixed seed and a fixed text, so nothing is fetched."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import nn

from stageline.families.panorama_vlm.data.made import made_texts
from stageline.families.panorama_vlm.data.text import find_special_ids
from stageline.families.panorama_vlm.data.tokenizer import train_tokenizer
from stageline.families.panorama_vlm.model.language import build_language, tiny_language_config
from stageline.families.panorama_vlm.model.tower import TINY_SEED, fixed_random


@lru_cache(maxsize=1)
def tiny_tokenizer() -> Any:
    """The tokenizer of the tiny language model."""
    return train_tokenizer(made_texts())


def tiny_language(attention: str) -> nn.Module:
    """The tiny language model, its weights a function of a fixed seed."""
    tokenizer = tiny_tokenizer()
    special = find_special_ids(tokenizer)
    with fixed_random(TINY_SEED):
        return build_language(tiny_language_config(len(tokenizer), special.pad, special.end_of_turn), attention)

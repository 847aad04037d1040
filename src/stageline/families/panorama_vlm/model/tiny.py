"""The tiny language model and its tokenizer: functions of a fixed seed and a fixed text, so nothing is fetched."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

from torch import nn

from stageline.families.panorama_vlm.data.made import ANSWER, COLOURS, DIRECTIONS, QUESTION
from stageline.families.panorama_vlm.data.text import find_special_ids
from stageline.families.panorama_vlm.data.tokenizer import train_tokenizer
from stageline.families.panorama_vlm.model.language import build_language, tiny_language_config
from stageline.families.panorama_vlm.model.tower import TINY_SEED, fixed_random


def tiny_corpus() -> list[str]:
    """The texts that the tiny tokenizer learns its merges from."""
    questions = [QUESTION.format(direction=direction) for direction in DIRECTIONS]
    answers = [ANSWER.format(direction=where, colour=colour) for where, colour in product(DIRECTIONS, COLOURS)]
    return [*questions, *answers, "a panorama of a room with four walls", "user", "assistant", "system"]


@lru_cache(maxsize=1)
def tiny_tokenizer() -> Any:
    """The tokenizer of the tiny language model."""
    return train_tokenizer(tiny_corpus())


def tiny_language(attention: str) -> nn.Module:
    """The tiny language model, its weights a function of a fixed seed."""
    tokenizer = tiny_tokenizer()
    special = find_special_ids(tokenizer)
    with fixed_random(TINY_SEED):
        return build_language(tiny_language_config(len(tokenizer), special.pad, special.end_of_turn), attention)

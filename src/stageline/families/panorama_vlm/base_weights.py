"""Tiny base weights to try the family with: a random tower, and a language model that has read the demo's sentences.

Both are folders as the hub has them (config, safetensors, tokenizer), so that everything around them is what a real run
uses. The language model is trained on text alone: it knows how an answer is spelled, and nothing about any picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from stageline.data.rng import numpy_rng
from stageline.families.panorama_vlm.config.architectures import TINY_LANGUAGE, TINY_VISION
from stageline.families.panorama_vlm.data.made import make_room, questions_of
from stageline.families.panorama_vlm.data.text import PromptBuilder, collate_training, response_loss
from stageline.families.panorama_vlm.data.tokenizer import save_tokenizer
from stageline.families.panorama_vlm.model.assembly import tiny_tokenizer
from stageline.families.panorama_vlm.model.language import build_language, language_config
from stageline.families.panorama_vlm.model.tower import TINY_SEED, build_tower, tower_config
from stageline.layers.fixed_random import fixed_random

STEPS, BATCH, LEARNING_RATE, WARMUP = 200, 64, 3e-3, 20
IMAGE_TOKENS = 20
"""Places for image tokens in the sentences, as many as five views of four tokens have; nothing is put into them."""
ROOMS = 512
Progress = Callable[[int, int, str], None]


def write_tower(folder: Path) -> None:
    """Write the random tower."""
    with fixed_random(TINY_SEED):
        tower = build_tower(tower_config(TINY_VISION, "siglip"))
    tower.save_pretrained(str(folder))


def write_language(folder: Path, progress: Progress, *, steps: int = STEPS, seed: int = 0) -> float:
    """Train the tiny language model on text alone and write it with its tokenizer; returns its last loss.

    steps: optimizer steps.  seed: of the order of sentences.
    """
    tokenizer = tiny_tokenizer()
    with fixed_random(TINY_SEED):
        model = build_language(language_config(TINY_LANGUAGE), "sdpa")
    builder = PromptBuilder(tokenizer, IMAGE_TOKENS)
    texts = [
        builder.training_text(question.query, question.response)
        for index in range(ROOMS)
        for question in questions_of(make_room("train", index, seed))
    ]
    rng = numpy_rng(seed, "base weights")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    last = float("nan")
    for step in range(steps):
        progress(step, steps, "teaching the language model to spell answers")
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP)
        batch = collate_training([texts[int(n)] for n in rng.integers(len(texts), size=BATCH)], builder.special.pad)
        hidden = model.model(
            input_ids=batch.ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        total, count = response_loss(hidden, model.lm_head, batch.labels)
        loss = total / count
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = float(loss.detach())
    progress(steps, steps, "the language model can spell answers")
    model.save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder)
    return last

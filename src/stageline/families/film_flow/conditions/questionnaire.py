"""Probe conditioning: a model fills in a fixed questionnaire, and its log-probabilities are the feature.

Nine questions with closed vocabularies, in three groups: continuity, breaks, cause of breaks | likeness of other
structures, risk of false positives, their source | thin vessels, periphery, visibility. 7 x 8 levels and 2 x 9 labels
make 74 numbers. Each question is one teacher-forced forward pass; nothing is generated, so the answer is
deterministic. Where the candidates are single distinct tokens one pass scores all of them; otherwise every candidate is
scored as a string. An answer that is not finite makes the sample's condition absent, never a made-up vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stageline.errors import ConfigError
from stageline.families.film_flow.conditions.encoder import (
    EncoderSettings,
    Features,
    Picture,
    canonical_picture,
    check_lengths,
    make_features,
    round_feature,
)
from stageline.families.film_flow.conditions.vlm import (
    check_qwen,
    load_config,
    load_image_processor,
    load_tokenizer,
    load_weights,
    place,
    qwen_resize,
)

LEVELS = tuple("12345678")
LABELS = tuple("ABCDEFGHI")


@dataclass(frozen=True)
class Question:
    """One question and the answers that may be given to it."""

    text: str
    answers: tuple[str, ...]


def _scale(what: str) -> Question:
    return Question(f"Rate {what} in this picture from 1 (lowest) to 8 (highest). Answer with one digit.", LEVELS)


def _choice(what: str, options: Sequence[str]) -> Question:
    listed = ", ".join(f"{letter} {option}" for letter, option in zip(LABELS, options, strict=True))
    return Question(f"{what} Choose one: {listed}. Answer with one letter.", LABELS)


QUESTIONS = (
    _scale("how continuous the vessels are"),
    _scale("how many breaks the vessels have"),
    _choice(
        "What causes most breaks of the vessels?",
        ("low contrast", "noise", "crossings", "narrowing", "overlap", "motion", "border", "shadow", "no breaks"),
    ),
    _scale("how much other structures look like vessels"),
    _scale("the risk of taking something else for a vessel"),
    _choice(
        "What is most easily taken for a vessel?",
        ("bone edges", "instruments", "texture", "noise", "organ borders", "artefacts", "text", "folds", "nothing"),
    ),
    _scale("the share of very thin vessels"),
    _scale("how far vessels reach into the periphery"),
    _scale("how visible the vessels are"),
)
"""The questionnaire; its order is the feature's. Chosen here; part of the cache key through the feature's version."""
PROBE_WIDTH = sum(len(question.answers) for question in QUESTIONS)


class ProbeEncoder:
    """Qwen2.5-VL or Qwen3-VL as the one who fills in the questionnaire: vec (B, 74)."""

    def __init__(self, settings: EncoderSettings) -> None:
        if settings.feature_dim != PROBE_WIDTH:
            raise ConfigError(
                f"cond_source 'probe' gives {PROBE_WIDTH} numbers, feature_dim is {settings.feature_dim}",
                remedy=f"set model.vlm_film_config.feature_dim: {PROBE_WIDTH}",
                code="E_FEATURE_DIM",
            )
        config = load_config(settings)
        check_qwen(config, settings)
        from transformers import AutoModelForImageTextToText

        self.settings = settings
        self.config = config
        self.model = load_weights(AutoModelForImageTextToText.from_pretrained, settings)
        self.processor = load_image_processor(settings)
        self.tokenizer = load_tokenizer(settings)
        self.resize = qwen_resize(self.processor)
        self.tokens = [[self._ids(answer) for answer in question.answers] for question in QUESTIONS]
        self._check_tokens()

    @torch.no_grad()
    def encode(self, pictures: Sequence[Picture], prompts: Sequence[str], ids: Sequence[str]) -> Features:
        """Answers about some samples, one after the other; prompts are put before each question where given."""
        check_lengths(pictures, prompts, ids)
        vectors, present = [], []
        for picture, prompt, name in zip(pictures, prompts, ids, strict=True):
            image = Image.fromarray(canonical_picture(picture, self.resize))
            inputs = place(self.processor(images=image, return_tensors="pt"), self.model, self.settings)
            answers = [
                self._answer(inputs, f"{prompt} {question.text}".strip(), tokens)
                for question, tokens in zip(QUESTIONS, self.tokens, strict=True)
            ]
            scores = np.concatenate(answers)
            answered = bool(np.isfinite(scores).all())
            vectors.append(round_feature(scores if answered else np.zeros_like(scores), self.settings, name))
            present.append(answered)
        return make_features(vectors, present, self.settings)

    def _ids(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _check_tokens(self) -> None:
        """Refuse a tokenizer that cannot tell the candidates apart or needs too many tokens for one."""
        for question, tokens in zip(QUESTIONS, self.tokens, strict=True):
            longest = max(len(ids) for ids in tokens)
            if len({tuple(ids) for ids in tokens}) < len(tokens) or not all(tokens):
                raise ConfigError(
                    f"the tokenizer of {self.settings.model_name!r} cannot tell the answers {question.answers} apart",
                    remedy="use another model for cond_source 'probe'",
                )
            if longest > self.settings.max_new_tokens:
                raise ConfigError(
                    f"an answer of the questionnaire has {longest} tokens under {self.settings.model_name!r}",
                    remedy=f"set model.vlm_film_config.max_new_tokens to at least {longest}",
                )

    def _answer(self, inputs: dict[str, Tensor], question: str, tokens: list[list[int]]) -> NDArray[np.float32]:
        """Log-probability of each candidate as the answer, (len(tokens),)."""
        before = self._dialogue(inputs, question)
        if all(len(ids) == 1 for ids in tokens):
            row = self._log_probabilities(inputs, before)[-1]
            scores = row[torch.tensor([ids[0] for ids in tokens], device=row.device)]
        else:
            scores = torch.stack([self._score(inputs, before, ids) for ids in tokens])
        return np.asarray(scores.float().cpu().numpy(), dtype=np.float32)

    def _score(self, inputs: dict[str, Tensor], before: list[int], answer: list[int]) -> Tensor:
        """Log-probability of a whole candidate string: the sum over its tokens, each given the ones before."""
        rows = self._log_probabilities(inputs, before + answer)[len(before) - 1 : -1]
        return rows[torch.arange(len(answer)), torch.tensor(answer, device=rows.device)].sum()

    def _dialogue(self, inputs: dict[str, Tensor], question: str) -> list[int]:
        """Token ids of a picture, a question and the opening of an answer, in the model's chat form."""
        merge = int(self.config.vision_config.spatial_merge_size) ** 2
        num_tokens = int(inputs["image_grid_thw"][0].prod()) // merge
        picture = [self.config.image_token_id] * num_tokens
        return [
            *self._ids("<|im_start|>user\n"),
            self.config.vision_start_token_id,
            *picture,
            self.config.vision_end_token_id,
            *self._ids(f"{question}<|im_end|>\n<|im_start|>assistant\n"),
        ]

    def _log_probabilities(self, inputs: dict[str, Tensor], ids: list[int]) -> Tensor:
        """Log-probabilities over the vocabulary after each position of one sequence, (T, V) float32."""
        tokens = torch.tensor([ids], device=self.model.device)
        output: Any = self.model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            mm_token_type_ids=(tokens == self.config.image_token_id).int(),
            use_cache=False,
            **inputs,
        )
        return torch.log_softmax(output.logits[0].float(), dim=-1)

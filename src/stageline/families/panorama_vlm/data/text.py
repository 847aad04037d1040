"""Texts as ids: prompts, labels, truncation, padding, and the loss of responses.

One builder makes the prompt for training and for generation. A sequence is made of parts that are tokenised apart, so
that no merge crosses a border:

    prompt, not trained   template's head, <|vision_start|>, T x <|image_pad|>, <|vision_end|>, newline + query,
                          template's tail up to the assistant's turn (with an empty block of thoughts for Qwen3)
    target, trained       response, <|im_end|>

What a query or a response says is plain text: `<|image_pad|>` in it is a row of characters, no image token.
Shapes: B samples, L positions, C channels of the language model, T image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from stageline.errors import CheckpointError, ConfigError, DataError, Faults
from stageline.families.panorama_vlm.data.tokenizer import END_OF_TEXT, END_OF_TURN, IMAGE, VISION_END, VISION_START

IGNORED = -100
"""Label of a position that is not trained."""
CUT_WARNING = 0.05
"""Share of truncated samples above which an epoch is warned about."""
CONTENT = "\ue000content\ue001"
"""Stands for the user's message while the template is rendered; private characters, in no text of ours."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens that frame image and turns. pad: fills batches; may equal another one."""

    vision_start: int
    vision_end: int
    image: int
    end_of_turn: int
    end_of_text: int
    pad: int

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end a generated text."""
        return tuple(sorted({self.end_of_turn, self.end_of_text}))


def find_special_ids(tokenizer: Any) -> SpecialIds:
    """The special ids of a tokenizer, by name.

    Raises CheckpointError with every name that its vocabulary lacks or splits into several ids.
    """
    faults = Faults(CheckpointError, "special tokens", "use a tokenizer with Qwen3's special tokens")
    vocabulary, found = tokenizer.get_vocab(), {}
    for name in (VISION_START, VISION_END, IMAGE, END_OF_TURN, END_OF_TEXT):
        ids = tokenizer.encode(name, add_special_tokens=False)
        if name not in vocabulary:
            faults.add(f"the vocabulary has no {name}")
        elif ids != [vocabulary[name]]:
            faults.add(f"{name} is split into {len(ids)} ids, expected one")
        found[name] = vocabulary.get(name, -1)
    faults.raise_if_any()
    pad = tokenizer.pad_token_id
    pad = found[END_OF_TEXT] if pad is None else pad
    return SpecialIds(found[VISION_START], found[VISION_END], found[IMAGE], found[END_OF_TURN], found[END_OF_TEXT], pad)


@dataclass(frozen=True)
class Prompt:
    """ids: of everything before the response.  query_cut: the query was too long."""

    ids: tuple[int, ...]
    query_cut: bool = False


@dataclass(frozen=True)
class TrainingText:
    """A prompt and the ids that are trained. response_cut: the response was too long and has no end of turn."""

    prompt: Prompt
    target: tuple[int, ...]
    response_cut: bool = False

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt.ids + self.target

    @property
    def labels(self) -> tuple[int, ...]:
        """One per id, not shifted: `IGNORED` for the prompt, the id itself for the target."""
        return (IGNORED,) * len(self.prompt.ids) + self.target


class PromptBuilder:
    """Makes the ids of prompts and of training texts.

    tokenizer: of transformers, with a chat template.
    num_image_tokens: T, as the resampler gives them.
    max_text_length: most ids of query and response together; image tokens and template do not count.
    min_response_tokens: how many of these the query always leaves to the response.
    system: text of a system turn; None: no such turn.

    A query longer than max_text_length - min_response_tokens is cut in its middle. That depends on the query alone, so
    training and generation have the same prompt. A response is cut at its end to what the query leaves.
    """

    def __init__(
        self,
        tokenizer: Any,
        num_image_tokens: int,
        *,
        max_text_length: int = 256,
        min_response_tokens: int = 8,
        system: str | None = None,
    ) -> None:
        faults = Faults(ConfigError, "prompts")
        if num_image_tokens < 1:
            faults.add(f"{num_image_tokens} image tokens, expected at least 1")
        if not 1 <= min_response_tokens < max_text_length:
            faults.add(f"min_response_tokens {min_response_tokens}: expected 1 or more, below {max_text_length}")
        faults.raise_if_any()
        self.tokenizer = tokenizer
        self.special = find_special_ids(tokenizer)
        self.num_image_tokens = num_image_tokens
        self.max_text_length = max_text_length
        self.min_response_tokens = min_response_tokens
        before, after = self._render(system)
        image = [self.special.vision_start, *[self.special.image] * num_image_tokens, self.special.vision_end]
        self._head = (*before, *image)
        self._tail = tuple(after)

    def _render(self, system: str | None) -> tuple[list[int], list[int]]:
        """Ids of the template before and behind the user's message; thinking is switched off."""
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": CONTENT})
        if not self.tokenizer.chat_template:
            raise CheckpointError("the tokenizer has no chat template", remedy="use the tokenizer of a chat model")
        text = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        parts = text.split(CONTENT)
        if len(parts) != 2:
            raise CheckpointError(
                f"the chat template writes the user's message {len(parts) - 1} times, expected once",
                remedy="use a template that writes each message once, as it is",
            )
        before, after = (self.tokenizer.encode(part, add_special_tokens=False) for part in parts)
        return before, after

    def _plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if self.special.image in ids:
            raise DataError(f"the tokenizer makes an image token of the text {text!r}", remedy="leave the row out")
        return ids

    def _query(self, query: str) -> tuple[tuple[int, ...], bool]:
        ids = self._plain("\n" + query)
        room = self.max_text_length - self.min_response_tokens
        if len(ids) <= room:
            return tuple(ids), False
        kept_behind = room // 2
        return (*ids[: room - kept_behind], *ids[len(ids) - kept_behind :]), True

    def prompt(self, query: str) -> Prompt:
        """Everything before the response: what generation starts from and what training does not train."""
        ids, cut = self._query(query)
        return Prompt((*self._head, *ids, *self._tail), cut)

    def training_text(self, query: str, response: str) -> TrainingText:
        """Prompt, response and end of turn; a response that is cut has no end of turn."""
        ids, cut = self._query(query)
        target = (*self._plain(response), self.special.end_of_turn)
        if len(target) < 2:
            raise DataError(f"an empty response to the query {query!r}", remedy="leave the row out")
        room = self.max_text_length - len(ids)
        response_cut = len(target) > room
        return TrainingText(
            Prompt((*self._head, *ids, *self._tail), cut), target[:room] if response_cut else target, response_cut
        )

    def read_answer(self, ids: Sequence[int]) -> tuple[str, str, int]:
        """Text, end (`eos` or `length`) and number of new ids, the stop included, of one generated sequence.

        ids: new ids only; what stands behind the first stop is padding.
        """
        stops = [place for place, token in enumerate(ids) if token in self.special.stops]
        kept = ids[: stops[0]] if stops else ids
        text: str = self.tokenizer.decode(list(kept), skip_special_tokens=True)
        return text, "eos" if stops else "length", len(kept) + bool(stops)


@dataclass(frozen=True)
class TextBatch:
    """Padded sequences. All (B, L) int64.

    ids.  attention_mask: 1 where a sequence is, made from lengths.  position_ids: count from 0 at the first id; 0 where
    there is padding.  labels: `IGNORED` outside of targets; for prompts everywhere.
    num_queries_cut, num_responses_cut: of the samples of the batch.
    """

    ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    num_queries_cut: int = 0
    num_responses_cut: int = 0


def collate_training(texts: Sequence[TrainingText], pad: int) -> TextBatch:
    """Training texts, padded on the right."""
    ids, labels = [text.ids for text in texts], [text.labels for text in texts]
    cut = sum(text.prompt.query_cut for text in texts), sum(text.response_cut for text in texts)
    return _pad(ids, labels, pad, left=False, cut=cut)


def collate_prompts(prompts: Sequence[Prompt], pad: int) -> TextBatch:
    """Prompts for generation, padded on the left, so that every sequence ends where new ids begin."""
    ids = [prompt.ids for prompt in prompts]
    cut = sum(prompt.query_cut for prompt in prompts), 0
    return _pad(ids, [(IGNORED,) * len(row) for row in ids], pad, left=True, cut=cut)


def _pad(
    rows: Sequence[tuple[int, ...]], labels: Sequence[tuple[int, ...]], pad: int, *, left: bool, cut: tuple[int, int]
) -> TextBatch:
    shape = (len(rows), max(len(row) for row in rows))
    ids, target = torch.full(shape, pad), torch.full(shape, IGNORED)
    mask, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        start = shape[1] - len(row) if left else 0
        place = slice(start, start + len(row))
        ids[number, place] = torch.tensor(row)
        target[number, place] = torch.tensor(label)
        mask[number, place] = 1
        positions[number, place] = torch.arange(len(row))
    return TextBatch(ids, mask, positions, target, *cut)


@dataclass
class CutCounts:
    """How many samples of an epoch were truncated."""

    samples: int = 0
    queries: int = 0
    responses: int = 0

    def add(self, batch: TextBatch) -> None:
        self.samples += len(batch.ids)
        self.queries += batch.num_queries_cut
        self.responses += batch.num_responses_cut

    def warning(self) -> str:
        """A sentence where more than one sample in twenty was truncated, else ""."""
        if max(self.queries, self.responses) <= CUT_WARNING * self.samples:
            return ""
        return (
            f"{self.responses} responses and {self.queries} queries of {self.samples} samples were cut; "
            "raise max_text_length"
        )


def place_image_tokens(embeddings: Tensor, ids: Tensor, image_tokens: Tensor, image_id: int) -> Tensor:
    """Embeddings (B, L, C) with the rows at image ids replaced by the resampler's tokens, in the embeddings' dtype.

    ids: (B, L).  image_tokens: (B, T, C).  image_id: of `<|image_pad|>`.

    Raises DataError with both numbers where a sample has not exactly T places.
    """
    places = ids == image_id
    wrong = [
        f"sample {row} has {count} places for {image_tokens.shape[1]} image tokens"
        for row, count in enumerate(places.sum(dim=1).tolist())
        if count != image_tokens.shape[1]
    ]
    if wrong or len(ids) != len(image_tokens):
        raise DataError("; ".join(wrong) or f"{len(ids)} texts for {len(image_tokens)} pictures")
    return embeddings.masked_scatter(places[..., None], image_tokens.to(embeddings.dtype))


def response_loss(hidden: Tensor, lm_head: nn.Module, labels: Tensor) -> tuple[Tensor, int]:
    """Sum of the cross-entropy of the trained ids, and how many they are; logits are made for those positions only.

    hidden: (B, L, C) last hidden states; position i predicts the id at i + 1.
    lm_head: C -> vocabulary.
    labels: (B, L) not shifted, `IGNORED` where nothing is trained.

    Sum / count equals the loss that a causal language model of transformers computes from the same labels.
    """
    wanted = labels[:, 1:]
    chosen = wanted != IGNORED
    targets = wanted[chosen]
    if not len(targets):
        raise DataError("no id of this batch is trained", remedy="every sample needs a response")
    logits = lm_head(hidden[:, :-1][chosen]).float()
    return F.cross_entropy(logits, targets, reduction="sum"), len(targets)

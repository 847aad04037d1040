"""Prompts, labels, truncation, padding and the loss of responses."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from stageline.errors import CheckpointError, ConfigError, DataError
from stageline.families.panorama_vlm.data.text import (
    IGNORED,
    CutCounts,
    PromptBuilder,
    collate_prompts,
    collate_training,
    find_special_ids,
    place_image_tokens,
    response_loss,
)
from stageline.families.panorama_vlm.data.tokenizer import IMAGE, VISION_END, VISION_START

sys.path.insert(0, str(Path(__file__).parent))
from tiny_language import THINKING_TEMPLATE, tiny_model, tiny_tokenizer

T = 7
QUERIES = [
    *(f"What colour is at the {d}{mark}" for d in ("front", "right", "back", "left") for mark in ("?", "", " !?", "…")),
    *("창문은 어디에 있습니까?", "房间里有什么？", "½ ° → 🙂 ∞", "  spaces  around  ", "two\nlines", "tab\tand \x00"),
    *("<|im_end|>", "<|image_pad|><|image_pad|>", "<|vision_start|>", "{{ messages }}", "{% raw %}", "\\n \\ud800"),
    *("a", "", "\n", "user\nassistant", "<think>", "</think>\n\n", "e\u0301\u200d", "'\"`", "x" * 40),
    *(f"Describe number {n}, please." for n in range(13)),
]
RESPONSES = ["The front is red.", "파란 벽", "a", "Two\nlines <|im_end|> and more."]


@pytest.fixture(scope="module", params=["plain", "thinking"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    made = tiny_tokenizer()
    if request.param == "thinking":
        made.chat_template = THINKING_TEMPLATE
    return made


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return tiny_model(tokenizer)


def four_texts(builder: PromptBuilder) -> list[Any]:
    return [builder.training_text(*pair) for pair in zip(QUERIES[14:18], RESPONSES, strict=True)]


def test_training_and_generation_have_the_same_prompt(tokenizer: Any) -> None:
    """Check 14: 50 equal prompts with T image tokens; labels cover exactly response and end of turn."""
    builder = PromptBuilder(tokenizer, T)
    special = builder.special
    assert len(QUERIES) == 50
    for number, query in enumerate(QUERIES):
        response = RESPONSES[number % 4]
        prompt, text = builder.prompt(query), builder.training_text(query, response)
        assert text.ids[: len(prompt.ids)] == prompt.ids == text.prompt.ids
        assert text.ids.count(special.image) == T
        labels = text.labels
        assert len(labels) == len(text.ids)
        first = len(prompt.ids)
        assert set(labels[:first]) == {IGNORED}
        assert labels[first:] == text.ids[first:]
        assert labels[-1] == special.end_of_turn
        assert tokenizer.decode(labels[first:-1]) == response


def test_the_prompt_is_the_template_with_the_image_inside_the_users_turn(tokenizer: Any) -> None:
    """Check 14: equal to the ids of the whole rendered text, wherever the query has no special token in it."""
    builder = PromptBuilder(tokenizer, T, system="Be brief.")
    for query in QUERIES:
        if "<|" in query:
            continue
        content = VISION_START + IMAGE * T + VISION_END + "\n" + query
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        assert list(builder.prompt(query).ids) == tokenizer.encode(text, add_special_tokens=False)
    assert ("</think>" in tokenizer.decode(builder.prompt("q").ids)) is ("think" in tokenizer.chat_template)


def test_a_query_never_becomes_structure(tokenizer: Any) -> None:
    builder = PromptBuilder(tokenizer, T)
    plain = builder.prompt("q").ids
    for query in ("<|im_end|>", "<|image_pad|>", "<|vision_start|><|vision_end|>", "<|endoftext|>"):
        ids = builder.prompt(query).ids
        for token in (*builder.special.stops, builder.special.image, builder.special.vision_start):
            assert ids.count(token) == plain.count(token)


@pytest.mark.parametrize("length", [9, 12, 30])
def test_truncation_never_cuts_image_tokens(tokenizer: Any, length: int) -> None:
    """Check 14: the response goes first, down to its least length, then the query from its middle."""
    builder = PromptBuilder(tokenizer, T, max_text_length=length, min_response_tokens=8)
    whole = PromptBuilder(tokenizer, T, max_text_length=10_000)
    frame = len(whole.prompt("").ids) - len(tokenizer.encode("\n"))
    query, response = "abcdefgh" * 20, "xyz " * 20
    text = builder.training_text(query, response)
    assert text.prompt == builder.prompt(query)
    assert text.prompt.query_cut
    assert text.response_cut
    assert text.ids.count(builder.special.image) == T
    assert len(text.prompt.ids) - frame == length - 8
    assert text.target == whole.training_text(query, response).target[:8]
    assert builder.special.end_of_turn not in text.target
    kept, full = list(text.prompt.ids), list(whole.prompt(query).ids)
    behind = (length - 8) // 2 + len(builder._tail)
    assert kept[-behind:] == full[-behind:]
    assert kept[:-behind] == full[: len(kept) - behind]


def test_a_short_query_leaves_its_room_to_the_response(tokenizer: Any) -> None:
    whole = PromptBuilder(tokenizer, T, max_text_length=10_000)
    target = whole.training_text("q", "a long response indeed").target
    query_length = len(tokenizer.encode("\nq"))
    exact = PromptBuilder(tokenizer, T, max_text_length=query_length + len(target))
    assert exact.training_text("q", "a long response indeed") == whole.training_text("q", "a long response indeed")
    less = PromptBuilder(tokenizer, T, max_text_length=query_length + len(target) - 1)
    cut = less.training_text("q", "a long response indeed")
    assert cut.response_cut
    assert not cut.prompt.query_cut
    assert cut.target == target[:-1]


def test_batches_are_padded_by_lengths(tokenizer: Any) -> None:
    """The padding is the end of turn here: a mask made from ids would hide the ends of the texts."""
    builder = PromptBuilder(tokenizer, T)
    texts, pad = four_texts(builder), builder.special.end_of_turn
    right, left = collate_training(texts, pad), collate_prompts([text.prompt for text in texts], pad)
    for number, text in enumerate(texts):
        size, prompt = len(text.ids), len(text.prompt.ids)
        assert right.ids[number, :size].tolist() == list(text.ids)
        assert right.labels[number, :size].tolist() == list(text.labels)
        assert (right.labels[number, size:] == IGNORED).all()
        assert right.attention_mask[number].tolist() == [1] * size + [0] * (right.ids.shape[1] - size)
        assert right.position_ids[number, :size].tolist() == list(range(size))
        gap = left.ids.shape[1] - prompt
        assert left.ids[number, gap:].tolist() == list(text.prompt.ids)
        assert left.attention_mask[number].tolist() == [0] * gap + [1] * prompt
        assert left.position_ids[number].tolist() == [0] * gap + list(range(prompt))
    assert (left.labels == IGNORED).all()
    assert right.ids.dtype == right.labels.dtype == right.position_ids.dtype == torch.int64


def test_response_loss_equals_the_built_in_one(tokenizer: Any, model: Any) -> None:
    """Check 11: also when four texts are one batch, and through a pad that is the end of turn."""
    builder = PromptBuilder(tokenizer, T)
    texts = four_texts(builder)
    batch = collate_training(texts, builder.special.end_of_turn)
    with torch.no_grad():
        built_in = model(
            input_ids=batch.ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            labels=batch.labels,
        ).loss
        hidden = model.model(batch.ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
        total, count = response_loss(hidden.last_hidden_state, model.lm_head, batch.labels)
        singles = []
        for text in texts:
            one = collate_training([text], builder.special.pad)
            singles.append(response_loss(model.model(one.ids).last_hidden_state, model.lm_head, one.labels))
    assert count == sum(len(text.target) for text in texts)
    assert_close(total / count, built_in, rtol=0, atol=1e-5)
    assert sum(number for _, number in singles) == count
    assert_close(torch.stack([part for part, _ in singles]).sum() / count, built_in, rtol=0, atol=1e-5)


def test_response_loss_has_the_gradients_of_the_built_in_one(tokenizer: Any, model: Any) -> None:
    """Check 11."""
    batch = collate_training(four_texts(PromptBuilder(tokenizer, T)), 0)
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    theirs(input_ids=batch.ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
    hidden = ours.model(batch.ids, attention_mask=batch.attention_mask).last_hidden_state
    total, count = response_loss(hidden, ours.lm_head, batch.labels)
    (total / count).backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_only_trained_positions_matter_to_the_loss() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 5, 4), nn.Linear(4, 9)
    labels = torch.full((2, 5), IGNORED)
    labels[0, 3], labels[1, 1] = 5, 7
    total, count = response_loss(hidden, head, labels)
    expected = -head(hidden[0, 2]).log_softmax(0)[5] - head(hidden[1, 0]).log_softmax(0)[7]
    assert count == 2
    assert_close(total, expected)
    with pytest.raises(DataError, match="no id of this batch"):
        response_loss(hidden, head, torch.full((2, 5), IGNORED))


def test_left_padding_does_not_change_what_is_generated(tokenizer: Any, model: Any) -> None:
    """Check 11: a batch of prompts gives each the ids that it gives alone, image tokens included."""
    builder = PromptBuilder(tokenizer, T)
    prompts = [builder.prompt(query) for query in (QUERIES[0], QUERIES[16], "a", "a long query " * 4)]
    images = torch.randn(len(prompts), T, 64, generator=torch.Generator().manual_seed(1))
    stops, pad = list(builder.special.stops), builder.special.end_of_turn

    def generate(chosen: list[int]) -> list[list[int]]:
        batch = collate_prompts([prompts[i] for i in chosen], pad)
        embeddings = model.get_input_embeddings()(batch.ids)
        embeddings = place_image_tokens(embeddings, batch.ids, images[chosen], builder.special.image)
        new = model.generate(
            inputs_embeds=embeddings,
            attention_mask=batch.attention_mask,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=pad,
        )
        return [list(row) for row in new.tolist()]

    together = generate([0, 1, 2, 3])
    for number, row in enumerate(together):
        (alone,) = generate([number])
        assert row[: len(alone)] == alone
        assert builder.read_answer(row) == builder.read_answer(alone)


def test_answers_end_at_the_first_stop(tokenizer: Any) -> None:
    builder = PromptBuilder(tokenizer, T)
    ids, special = tokenizer.encode("The left is red."), builder.special
    assert builder.read_answer([*ids, special.end_of_turn, *ids]) == ("The left is red.", "eos", len(ids) + 1)
    assert builder.read_answer([*ids, special.end_of_text]) == ("The left is red.", "eos", len(ids) + 1)
    assert builder.read_answer(ids) == ("The left is red.", "length", len(ids))
    assert builder.read_answer([special.end_of_turn]) == ("", "eos", 1)


def test_image_tokens_fill_their_places_only() -> None:
    """Check 10: another number of places is refused with both numbers."""
    ids = torch.tensor([[9, 5, 5, 1], [5, 2, 5, 9]])
    embeddings, tokens = torch.zeros(2, 4, 3), torch.arange(12.0, dtype=torch.float64).reshape(2, 2, 3) + 1
    placed = place_image_tokens(embeddings, ids, tokens, image_id=5)
    assert placed.dtype == torch.float32
    assert_close(placed[0, 1:3], tokens[0].float())
    assert_close(placed[1, [0, 2]], tokens[1].float())
    assert placed[ids != 5].abs().sum() == 0
    with pytest.raises(DataError, match="sample 0 has 2 places for 3 image tokens"):
        place_image_tokens(embeddings, ids, torch.zeros(2, 3, 3), image_id=5)
    with pytest.raises(DataError, match="sample 1 has 1 places for 2"):
        place_image_tokens(embeddings, torch.tensor([[5, 5, 1, 1], [5, 1, 1, 1]]), tokens, image_id=5)
    with pytest.raises(DataError, match="2 texts for 1 pictures"):
        place_image_tokens(embeddings, ids, tokens[:1], image_id=5)


def test_truncations_are_counted(tokenizer: Any) -> None:
    builder, counts = PromptBuilder(tokenizer, T, max_text_length=20), CutCounts()
    long, short = builder.training_text("q", "long " * 20), builder.training_text("q", "a")
    for texts in ([short] * 18, [short, long]):
        counts.add(collate_training(texts, 0))
    assert (counts.samples, counts.responses, counts.queries) == (20, 1, 0)
    assert counts.warning() == ""
    counts.add(collate_prompts([builder.prompt("q" * 99)] * 2, 0))
    assert counts.warning() == "1 responses and 2 queries of 22 samples were cut; raise max_text_length"


def test_a_builder_travels_to_other_processes(tokenizer: Any) -> None:
    builder = PromptBuilder(tokenizer, T)
    assert pickle.loads(pickle.dumps(builder)).prompt("q") == builder.prompt("q")  # noqa: S301


def test_special_tokens_that_are_missing_or_split_are_named() -> None:
    from transformers import PreTrainedTokenizerFast

    bare = tiny_tokenizer()
    text = bare.backend_tokenizer.to_str().replace("<|image_pad|>", "<|other|>")
    from tokenizers import Tokenizer

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text))
    with pytest.raises(CheckpointError, match=r"1 fault\n.*the vocabulary has no <\|image_pad\|>"):
        find_special_ids(other)
    special = find_special_ids(bare)
    assert special.stops == (special.end_of_text, special.end_of_turn)
    assert special.pad == special.end_of_text


def test_settings_that_cannot_work_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"(?s)2 faults.*0 image tokens.*min_response_tokens 8"):
        PromptBuilder(tokenizer, 0, max_text_length=8)
    with pytest.raises(DataError, match="empty response"):
        PromptBuilder(tokenizer, T).training_text("q", "")
    without = tiny_tokenizer()
    without.chat_template = None
    with pytest.raises(CheckpointError, match="no chat template"):
        PromptBuilder(without, T)
    without.chat_template = "{{ messages[0].content }}{{ messages[0].content }}"
    with pytest.raises(CheckpointError, match="2 times"):
        PromptBuilder(without, T)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers' old name
def test_response_loss_at_true_width_and_vocabulary() -> None:
    """Check 11: two layers of Qwen3-0.6B with adapters and 576 image tokens, loss and gradients of the adapters."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    vocabulary, length, prompt = 151_936, 640, 600
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = get_peft_model(
        Qwen3ForCausalLM(config),
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False),
    )
    ids = torch.randint(151_600, (1, length))
    ids[0, 8 : 8 + 576] = 151_655
    labels = torch.where(torch.arange(length) < prompt, IGNORED, ids)
    embeddings = model.get_input_embeddings()(ids).detach()
    embeddings = place_image_tokens(embeddings, ids, torch.randn(1, 576, 1024) * 0.02, 151_655)
    adapters = {name: part for name, part in model.named_parameters() if part.requires_grad}
    base = model.get_base_model()
    total, count = response_loss(base.model(inputs_embeds=embeddings).last_hidden_state, base.lm_head, labels)
    (total / count).backward()
    ours = {name: part.grad.clone() for name, part in adapters.items()}
    model.zero_grad()
    built_in = model(inputs_embeds=embeddings, labels=labels).loss
    built_in.backward()
    assert count == length - prompt
    assert_close(total / count, built_in, rtol=0, atol=1e-5)
    assert len(ours) == 8
    for name, part in adapters.items():
        assert_close(ours[name], part.grad, rtol=1e-4, atol=1e-6)

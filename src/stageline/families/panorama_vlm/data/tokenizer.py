"""Tokenizers: a small byte-level BPE of our own, trained in a moment, and any that lies in a local folder.

The small one has the special tokens of Qwen3's vocabulary by the same names and a ChatML template, so that everything
around it is as with the real one. Its alphabet is all bytes: any text makes a round trip. Nothing is fetched, and no
code that comes with a tokenizer is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stageline.config.bounds import read_json, read_whole
from stageline.errors import CheckpointError, Faults, MissingPartError
from stageline.store.disk import lfs_pointer

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
SPECIAL = (END_OF_TEXT, START_OF_TURN, END_OF_TURN, VISION_START, VISION_END, IMAGE)
"""In the order of their ids, from 0."""
VOCABULARY_SIZE = 512
"""Largest size of the small vocabulary: 6 special tokens, 256 bytes, merges."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "chat_template.json"),
)
REMEDY = "fetch the model's tokenizer files into that folder (`git lfs pull` where they are pointers)"


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingPartError(
            f"tokenizers need transformers, which cannot be imported: {error}", remedy="pip install 'stageline[vlm]'"
        ) from error
    return transformers


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> Any:
    """A byte-level BPE tokenizer (`PreTrainedTokenizerFast`) with chat template; the same texts give the same one.

    texts: what the merges are learned from; their order does not matter.
    vocabulary_size: largest number of ids, at least 262.
    """
    transformers = _transformers()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(texts), trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[START_OF_TURN, VISION_START, VISION_END, IMAGE],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files into a folder, as `load_tokenizer` and transformers read them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a local folder.

    folder: with `tokenizer_config.json` and either `tokenizer.json` or `vocab.json` and `merges.txt`.

    Raises CheckpointError that names every file that is missing, a git-lfs pointer or damaged.
    """
    faults = Faults(CheckpointError, f"tokenizer {str(folder)!r}", REMEDY)
    if not folder.is_dir():
        faults.add("no such folder")
    else:
        _check_files(folder, faults)
    faults.raise_if_any()
    transformers = _transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"tokenizer {str(folder)!r} cannot be loaded: {first}", remedy=REMEDY) from error


def _check_files(folder: Path, faults: Faults) -> None:
    there = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if "tokenizer_config.json" not in there:
        faults.add("tokenizer_config.json is missing")
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= {*there}:
        faults.add("tokenizer.json is missing (or vocab.json and merges.txt)")
    for name in there:
        if pointer := lfs_pointer(folder / name):
            faults.add(f"{name} is {pointer}")
            continue
        try:
            data = read_whole(folder / name)
            if name.endswith(".json"):
                read_json(data)
        except ValueError as error:
            faults.add(f"{name} is damaged: {error}")

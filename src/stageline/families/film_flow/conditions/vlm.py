"""Frozen vision-language encoders through transformers: CLIP, SigLIP, SigLIP2, Qwen2.5-VL and Qwen3-VL.

One sample at a time (the locality rule of `encoder`, and no feature depends on padding). Weights come from the folder
of an external, as safetensors only and never with code of their own; sizes are read from the loaded config. Image
processors use their PIL backend, so torchvision is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stageline.encoders.copies import open_external
from stageline.encoders.external import External
from stageline.encoders.frozen import load_frozen, load_part
from stageline.encoders.sources import find_source
from stageline.errors import ConfigError, DataError, MissingPartError
from stageline.families.film_flow.conditions.encoder import (
    EncoderSettings,
    Features,
    Picture,
    canonical_picture,
    check_lengths,
    make_features,
    round_feature,
)
from stageline.store import open_store

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CONTRASTIVE = ("clip", "siglip", "siglip2")
"""`model_type` of models with a picture and a text tower that give one vector each."""
QWEN = ("qwen2_5_vl", "qwen3_vl")
UNUSED = ("lm_head.*", "*.position_ids")
"""Tensors of whole models that a tower does not use: the head over the vocabulary, and plain counts from 0."""
DEFAULT_PATCH_GRID = 16
"""Patches per side for a model that takes any number of them, where its processor names none."""


def pooled_vectors(output: Any, count: int) -> Tensor:
    """One vector per picture from whatever `get_image_features` or `get_text_features` returned: (count, F) float32.

    Accepts a tensor (count, F), an object with such a `pooler_output`, or a tuple or list of one (T_i, F) matrix per
    picture (as an output or a `pooler_output`), whose rows are averaged. Anything else is a TypeError.
    """
    pooled = output if isinstance(output, (Tensor, tuple, list)) else getattr(output, "pooler_output", None)
    if isinstance(pooled, Tensor):
        if pooled.ndim != 2 or pooled.shape[0] != count:
            raise TypeError(f"encoder output of shape {tuple(pooled.shape)}, expected ({count}, F)")
        return pooled.float()
    if isinstance(pooled, (tuple, list)):
        if len(pooled) != count or not all(isinstance(p, Tensor) and p.ndim == 2 and len(p) for p in pooled):
            raise TypeError(f"encoder output is a {type(pooled).__name__} that is not {count} matrices (T, F)")
        return torch.stack([part.float().mean(dim=0) for part in pooled])
    raise TypeError(f"encoder output of type {type(output).__name__}: no tensor, no pooler_output, no matrices")


def missing_transformers(error: ImportError) -> MissingPartError:
    return MissingPartError(
        f"this encoder needs transformers, which cannot be imported: {error}", remedy="pip install 'stageline[vlm]'"
    )


def encoder_folder(settings: EncoderSettings) -> Path:
    """The folder with the encoder's files: the root's copy, verified, or what this machine has of that name."""
    if not settings.model_name:
        raise ConfigError(
            f"the encoder {settings.encoder!r} needs model.vlm_film_config.model_name",
            remedy="name a model or a local folder, e.g. openai/clip-vit-base-patch16",
        )
    external = External("encoder", settings.model_name, settings.revision)
    if not settings.root:
        return find_source(external).folder
    return open_external(open_store(settings.root), external)


def pick_device(name: str) -> torch.device:
    """The device a name means; `auto` is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"model.vlm_film_config.device_map {name!r} is no device: {str(error).splitlines()[0]}",
            remedy="use cpu, cuda, cuda:0 or auto",
        ) from error


def load_weights(loader: Callable[..., Any], settings: EncoderSettings) -> Any:
    """The encoder's weights on its device, frozen; refused if any of them is missing or not expected."""
    return load_frozen(
        loader,
        encoder_folder(settings),
        dtype=DTYPES[settings.dtype],
        device=pick_device(settings.device),
        unused=UNUSED,
    )


def load_config(settings: EncoderSettings) -> Any:
    """The encoder's own config, whose `model_type` decides how it is used."""
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise missing_transformers(error) from error
    return load_part(AutoConfig.from_pretrained, encoder_folder(settings), "config")


def load_image_processor(settings: EncoderSettings) -> Any:
    """The image processor with its PIL backend."""
    try:
        from transformers import AutoImageProcessor
    except ImportError as error:
        raise missing_transformers(error) from error
    processor = load_part(
        AutoImageProcessor.from_pretrained, encoder_folder(settings), "image processor", backend="pil"
    )
    if not type(processor).__name__.endswith("Pil"):
        raise MissingPartError(
            f"{settings.model_name!r} has the image processor {type(processor).__name__!r}, which has no PIL backend",
            remedy="install torchvision, or use another encoder",
        )
    return processor


def load_tokenizer(settings: EncoderSettings) -> Any:
    """The encoder's tokenizer."""
    from transformers import AutoTokenizer

    return load_part(AutoTokenizer.from_pretrained, encoder_folder(settings), "tokenizer")


class ContrastiveEncoder:
    """CLIP, SigLIP and SigLIP2: one pooled vector per picture and per prompt.

    A picture is squeezed whole to the model's square; nothing is cropped away.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        if settings.source == "probe":
            raise ConfigError(
                f"the encoder {settings.encoder!r} answers no questions (cond_source 'probe')", remedy="use qwen-vl"
            )
        config = load_config(settings)
        if config.model_type not in CONTRASTIVE:
            raise ConfigError(
                f"{settings.model_name!r} is a {config.model_type!r} model, expected one of {', '.join(CONTRASTIVE)}",
                remedy="set model.vlm_film_config.encoder to the kind of the model",
            )
        from transformers import AutoModel

        self.settings = settings
        self.kind = config.model_type
        self.model = load_weights(AutoModel.from_pretrained, settings)
        self.processor = load_image_processor(settings) if "image" in settings.source else None
        self.tokenizer = load_tokenizer(settings) if "text" in settings.source else None
        side = self._side(config)
        self.resize = f"square:{side},{side}"

    def _side(self, config: Any) -> int:
        """Pixels per side of the square the picture tower reads."""
        vision = config.vision_config
        if self.kind != "siglip2":
            return int(vision.image_size)
        patches = getattr(self.processor, "max_num_patches", None) or DEFAULT_PATCH_GRID**2
        return int(patches**0.5) * int(vision.patch_size)

    @torch.no_grad()
    def encode(self, pictures: Sequence[Picture], prompts: Sequence[str], ids: Sequence[str]) -> Features:
        """Features of some samples, one after the other; vec (B, settings.width)."""
        check_lengths(pictures, prompts, ids)
        vectors = []
        for picture, prompt, name in zip(pictures, prompts, ids, strict=True):
            parts = []
            if "image" in self.settings.source:
                parts.append(self._image_vector(picture))
            if "text" in self.settings.source:
                parts.append(self._text_vector(prompt, name))
            vectors.append(round_feature(np.concatenate(parts), self.settings, name))
        return make_features(vectors, [True] * len(ids), self.settings)

    def _image_vector(self, picture: Picture) -> NDArray[np.float32]:
        assert self.processor is not None
        options = {"do_resize": False, "do_center_crop": False} if self.kind == "clip" else {}
        image = Image.fromarray(canonical_picture(picture, self.resize))
        inputs = self.processor(images=image, return_tensors="pt", **options)
        output = self.model.get_image_features(**self._placed(inputs))
        return _as_numpy(pooled_vectors(output, 1)[0])

    def _text_vector(self, prompt: str, name: str) -> NDArray[np.float32]:
        assert self.tokenizer is not None
        limit = int(self.model.config.text_config.max_position_embeddings)
        # SigLIP was trained on prompts filled up to its full length; CLIP reads its end token.
        filled = {} if self.kind == "clip" else {"padding": "max_length", "max_length": limit}
        inputs = self.tokenizer(prompt, return_tensors="pt", **filled)
        length = int(inputs["input_ids"].shape[1])
        if length > limit:
            raise DataError(
                f"the prompt of {name!r} has {length} tokens, {self.settings.model_name!r} reads {limit}: {prompt!r}",
                remedy="shorten the prompt",
            )
        wanted = ("input_ids", "attention_mask") if self.kind == "clip" else ("input_ids",)
        output = self.model.get_text_features(**self._placed({key: inputs[key] for key in wanted}))
        return _as_numpy(pooled_vectors(output, 1)[0])

    def _placed(self, inputs: Any) -> dict[str, Tensor]:
        return place(inputs, self.model, self.settings)


class QwenEncoder:
    """Qwen2.5-VL and Qwen3-VL: mean of a picture's merged tokens, and mean of a prompt's last hidden states."""

    def __init__(self, settings: EncoderSettings) -> None:
        config = load_config(settings)
        check_qwen(config, settings)
        from transformers import AutoModel

        self.settings = settings
        self.model = load_weights(AutoModel.from_pretrained, settings)
        self.processor = load_image_processor(settings)
        self.tokenizer = load_tokenizer(settings) if "text" in settings.source else None
        self.resize = qwen_resize(self.processor)

    @torch.no_grad()
    def encode(self, pictures: Sequence[Picture], prompts: Sequence[str], ids: Sequence[str]) -> Features:
        """Features of some samples, one after the other; vec (B, settings.width)."""
        check_lengths(pictures, prompts, ids)
        vectors = []
        for picture, prompt, name in zip(pictures, prompts, ids, strict=True):
            parts = []
            if "image" in self.settings.source:
                image = Image.fromarray(canonical_picture(picture, self.resize))
                inputs = place(self.processor(images=image, return_tensors="pt"), self.model, self.settings)
                parts.append(_as_numpy(pooled_vectors(self.model.get_image_features(**inputs), 1)[0]))
            if "text" in self.settings.source:
                parts.append(self._text_vector(prompt, name))
            vectors.append(round_feature(np.concatenate(parts), self.settings, name))
        return make_features(vectors, [True] * len(ids), self.settings)

    def _text_vector(self, prompt: str, name: str) -> NDArray[np.float32]:
        assert self.tokenizer is not None
        inputs = self.tokenizer(prompt, return_tensors="pt")
        if not inputs["input_ids"].numel():
            raise DataError(f"the prompt of {name!r} has no tokens: {prompt!r}", remedy="give a prompt")
        tokens = inputs["input_ids"].to(self.model.device)
        hidden = self.model.language_model(input_ids=tokens, use_cache=False).last_hidden_state
        return _as_numpy(hidden[0].float().mean(dim=0))


def check_qwen(config: Any, settings: EncoderSettings) -> None:
    """Refuse a model of another kind under the name `qwen-vl`."""
    if config.model_type not in QWEN:
        raise ConfigError(
            f"{settings.model_name!r} is a {config.model_type!r} model, expected one of {', '.join(QWEN)}",
            remedy="set model.vlm_film_config.encoder to the kind of the model",
        )


def qwen_resize(processor: Any) -> str:
    """The processor's own rule for sizes: multiples of patch x merge, a number of pixels between its limits."""
    factor = int(processor.patch_size) * int(processor.merge_size)
    return f"grid:{factor},{int(processor.size['shortest_edge'])},{int(processor.size['longest_edge'])}"


def place(inputs: Any, model: Any, settings: EncoderSettings) -> dict[str, Tensor]:
    """Encoder inputs on the model's device, pixels in its number format."""
    return {
        key: value.to(model.device, DTYPES[settings.dtype] if value.is_floating_point() else value.dtype)
        for key, value in inputs.items()
    }


def _as_numpy(vector: Tensor) -> NDArray[np.float32]:
    return np.asarray(vector.detach().cpu().numpy(), dtype=np.float32)

"""What the keys of one section say about each other: every contradiction found, as (code, sentence). No torch.

A rule stands here when it needs more than one key; the range of one key stands with the key in its section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from stageline.config import SectionError
from stageline.data.names import NamePattern
from stageline.errors import ConfigError
from stageline.families.film_flow.config.film_plan import decoder_channels, resolve_gate_stages

if TYPE_CHECKING:
    from stageline.families.film_flow.config.model import ModelConfig
    from stageline.families.film_flow.config.sections import DataConfig

Fault = tuple[str, str]
T = TypeVar("T")


def as_value_error(check: Callable[[], T]) -> T:
    """Run a check that raises ConfigError where a ValueError is wanted: the config reports all faults together."""
    try:
        return check()
    except ConfigError as error:
        raise ValueError(_sentence(error)) from error


def raise_faults(faults: Sequence[Fault]) -> None:
    """One ValueError that lists all faults of a section."""
    if faults:
        raise SectionError([f"{code}: {text}" if code else text for code, text in faults])


def model_faults(model: ModelConfig) -> list[Fault]:
    """The contradictions inside `model`."""
    return [*_network(model), *_flow(model), *_conditioning(model)]


def _network(model: ModelConfig) -> Iterator[Fault]:
    depth = len(model.channel_mult)
    step = 2 ** (depth - 1)
    if model.image_size % step:
        yield "", f"image_size {model.image_size} is not divisible by {step} (channel_mult has {depth} resolutions)"
    levels = [model.image_size >> level for level in range(depth)]
    foreign = [r for r in model.attn_resolutions if r not in levels]
    if foreign:
        yield (
            "",
            f"attn_resolutions {foreign} are none of this network's resolutions {levels}; name some of these or []",
        )
    if model.backbone_variant == "msd_v0" and model.image_conditioning != "dual":
        yield "E_CONTRADICTION", "backbone_variant 'msd_v0' exists for image_conditioning 'dual' only"
    if model.image_conditioning != "dual":
        fields = type(model).model_fields
        changed = [key for key in ("fourier_grid", "mid_layers") if getattr(model, key) != fields[key].default]
        if changed:
            yield "E_CONTRADICTION", f"{changed} have an effect under image_conditioning 'dual' only"
    if model.patch_plan is not None:
        sizes = sorted({size for size, _ in model.patch_plan} - {model.image_size})
        if not model.patch_plan or any(number < 1 for _, number in model.patch_plan):
            yield "", f"patch_plan {model.patch_plan!r} makes no crops; give [[{model.image_size}, number]]"
        if sizes:
            yield (
                "",
                f"patch_plan has crops of size {sizes}, but a batch holds one size: image_size {model.image_size}; "
                f"say [[{model.image_size}, number]]",
            )


def _flow(model: ModelConfig) -> Iterator[Fault]:
    binary = model.mode == "dfm_binary"
    if binary and model.prediction != "endpoint":
        yield "E_CONTRADICTION", "mode 'dfm_binary' predicts logits of the mask: prediction must be 'endpoint'"
    if binary and model.target_kind != "hard":
        yield "E_CONTRADICTION", f"mode 'dfm_binary' needs target_kind 'hard', found {model.target_kind!r}"
    if model.sigma > 0 and (binary or model.prediction != "velocity"):
        yield (
            "E_CONTRADICTION",
            f"sigma {model.sigma} needs mode 'cfm_continuous' with prediction 'velocity': the bridge's velocity does "
            "not follow from the endpoint; say sigma: 0",
        )
    if model.lambda_auxiliary > 0 and (binary or model.prediction != "velocity"):
        yield "E_CONTRADICTION", "lambda_auxiliary has an effect under prediction 'velocity' only"
    if model.lambda_cldice > 0 and not binary and model.prediction != "endpoint":
        yield "E_CONTRADICTION", "lambda_cldice has an effect under prediction 'endpoint' only"
    if binary and model.solver != "euler":
        yield (
            "E_CONTRADICTION",
            f"mode 'dfm_binary' has its own sampler; solver must be 'euler', found {model.solver!r}",
        )


def _conditioning(model: ModelConfig) -> Iterator[Fault]:
    vlm, gate = model.vlm_film_config, model.junction_gating_config
    if model.use_vlm_film and vlm.encoder == "none":
        yield "E_CONTRADICTION", "vlm_film_config.encoder 'none' gives no condition, but use_vlm_film is true"
    if vlm.input_mode != "raw":
        yield (
            "E_REFUSED_KEY",
            f"vlm_film_config.input_mode {vlm.input_mode!r} would make the condition depend on the model and the step; "
            "train with 'raw' and say evaluate.mask_feedback for a painted picture in prediction",
        )
    if not gate.enabled:
        return
    channels = decoder_channels(model.model_channels, model.channel_mult)
    try:
        resolve_gate_stages(gate.apply_stages, model.vlm_film_decoder_stages or (), channels)
    except ConfigError as error:
        yield error.code, error.message


def data_faults(data: DataConfig) -> list[Fault]:
    """The contradictions inside `data`."""
    faults: list[Fault] = []
    folders = {key: getattr(data, key) for key in ("train_dir", "val_dir", "test_dir", "prompts_file")}
    if data.name == "folder":
        faults += [("", f"name 'folder' needs {key}") for key in ("train_dir", "val_dir") if not folders[key]]
    else:
        found = [key for key, value in folders.items() if value]
        faults += [("E_CONTRADICTION", f"{key} is read for name 'folder' only, not {data.name!r}") for key in found]
    for split in ("val", "test"):
        names, folder = getattr(data, f"{split}_names"), folders[f"{split}_dir"]
        if names and folder != folders["train_dir"]:
            faults.append(("", f"{split}_names tells splits of one folder apart, so {split}_dir must be train_dir"))
        if folder and not names and folder == folders["train_dir"]:
            faults.append(("", f"{split}_dir and train_dir are one folder: say which pictures in {split}_names"))
    try:
        NamePattern.parse(data.label_pattern)
    except ConfigError as error:
        faults.append(("", _sentence(error)))
    return faults


def _sentence(error: ConfigError) -> str:
    text = error.message + (f"; {error.remedy}" if error.remedy else "")
    return f"{error.code}: {text}" if error.code else text

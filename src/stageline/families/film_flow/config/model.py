"""The section `model` of a film_flow config, one sentence per key; no torch.

Keys are spelled as in the published configs of this model where those have them. The other sections stand in
`sections.py`, which keys are moved, renamed or refused when a file is read in `seed_keys.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from stageline.config import LocalPath, Settings, operational
from stageline.families.film_flow.config.film_plan import decoder_channels, resolve_decoder_stages
from stageline.families.film_flow.config.rules import as_value_error, model_faults, raise_faults

Encoder = Literal["none", "stub", "clip", "siglip2", "biomedclip", "qwen-vl", "precomputed"]
STUB_FEATURES = 64
"""Vector size of the offline encoder where the config names none; chosen here, any size works."""


class VlmFilmConfig(Settings):
    """The frozen vision-language encoder, what it is asked, and the sizes of what is trained on top of it."""

    model_name: str | None = None
    """Name or local path of the encoder's weights, e.g. `openai/clip-vit-base-patch16`; none for the stub."""
    encoder: Encoder | None = Field(default=None, validate_default=True)
    """Kind of encoder; null takes it from `model_name`, and without that the offline `stub`."""
    revision: str | None = None
    """Revision (commit) of the encoder's weights; part of the feature cache's key."""
    feature_dim: int | None = Field(default=None, ge=1, validate_default=True)
    """Size F of one vector of the encoder (CLIP ViT-B/16: 512); compared with what the loaded encoder says. Only the
    stub has a default."""
    cond_dim: int = Field(default=256, ge=1)
    """Size D of the projected condition that the FiLM heads read."""
    film_hidden_dim: int = Field(default=256, ge=1)
    """Inner width of a FiLM head."""
    text_mlp_hidden_dim: int = Field(default=256, ge=1)
    """Inner width of the projection of `cond_source: probe` features; the others have one layer."""
    cond_layernorm: bool = True
    """Whether a FiLM head starts with a LayerNorm; imported weights may lack it."""
    prompt_template: str | None = None
    """The prompt of every sample whose data bring none."""
    prompt_templates: dict[str, str] | None = None
    """Prompt per data set name; wins over `prompt_template`."""
    input_mode: Literal["raw", "overlay", "mask_only"] = "raw"
    """Picture the encoder sees in training: raw alone is legal, for `evaluate.mask_feedback` has the others."""
    overlay_alpha: float = Field(default=0.5, ge=0, le=1)
    """Opacity of the painted mask under `evaluate.mask_feedback: overlay`."""
    max_new_tokens: int = Field(default=4, ge=1)
    """Longest answer, in tokens, that `cond_source: probe` scores; nothing is generated freely."""
    embedding_dtype: Literal["float16", "float32"] = "float16"
    """Number format in which features are cached."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format in which the frozen encoder computes."""
    device_map: str | None = operational(None)
    """Where the frozen encoder is placed while features are prepared; null is the CPU."""
    cache_dir: LocalPath | None = operational(None)
    """Folder of the feature cache; null puts it under the run's root."""
    cache_only: bool = operational(False)
    """A missing feature is an error; no encoder is loaded at all."""

    @field_validator("encoder")
    @classmethod
    def _encoder_of_model(cls, value: str | None, info: ValidationInfo) -> str:
        if value is not None:
            return value
        name = (info.data.get("model_name") or "").lower()
        if not name:
            return "stub"
        for word, kind in (("biomedclip", "biomedclip"), ("siglip", "siglip2"), ("clip", "clip"), ("qwen", "qwen-vl")):
            if word in name:
                return kind
        raise ValueError(f"model_name {name!r} tells no kind of encoder; name it: clip, siglip2, biomedclip, qwen-vl")

    @field_validator("feature_dim")
    @classmethod
    def _feature_dim_known(cls, value: int | None, info: ValidationInfo) -> int | None:
        encoder = info.data.get("encoder")
        if value is None and encoder == "stub":
            return STUB_FEATURES
        if value is None and encoder not in (None, "none"):
            raise ValueError(
                f"encoder {encoder!r} needs its vector size here (CLIP ViT-B/16 512, SigLIP2 base 768, so400m 1152, "
                "Qwen2.5-VL-3B 2048); it is compared with the loaded encoder's"
            )
        return value


class JunctionGatingConfig(Settings):
    """The junction head, and the gate that turns FiLM down around junctions: g = 1 - a (1 - v) J."""

    enabled: bool = False
    """Train a junction head and gate FiLM by its map."""
    source: Literal["head", "pred", "gt"] = "head"
    """Where J comes from: the head; a first pass's skeleton (doubles the work); or the truth (evaluation only as a
    marked oracle)."""
    warmup_epochs: int = Field(default=0, ge=0)
    """Epochs with gate strength a = 0."""
    ramp_epochs: int = Field(default=0, ge=0)
    """Epochs in which a then rises linearly to 1."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a pixel belongs to the mask whose skeleton `source: pred` reads."""
    degree_threshold: int = 3
    """Branches that meet at a junction, at least 3: with 2 every pixel of a line would be one."""
    radius_px: float = Field(default=8.0, gt=0)
    """Least radius of a junction's disc in pixels; the heat map's sigma is a third of it."""
    gate_value_in_junction: float = Field(default=0.0, ge=0, le=1)
    """v: what is left of FiLM at a junction; 0 turns it off there, 1 gates nothing."""
    apply_stages: Literal["same_as_film", "all"] | tuple[int, ...] = "same_as_film"
    """Decoder stages that are gated, a subset of the FiLM decoder stages."""
    interp: Literal["maxpool", "nearest"] = "maxpool"
    """How J is brought to a decoder stage's size: max-pooled down and bilinear up, or nearest, which may lose small
    discs and serves imported models."""
    detach_gate: bool = True
    """No gradient from the flow loss into the junction head."""
    lambda_junction: float = Field(default=0.1, ge=0)
    """Weight of the junction head's loss."""
    junction_loss: Literal["focal", "bce_dice"] = "focal"
    """Loss of the junction head on the heat map."""
    junction_channels: int = Field(default=12, ge=4, multiple_of=4)
    """First width c of the junction head, a multiple of 4."""

    @field_validator("degree_threshold")
    @classmethod
    def _at_least_three(cls, value: int) -> int:
        if value < 3:
            raise ValueError(
                "E_RANGE: branches at a junction are at least 3; with 2 every pixel of a line is a junction"
            )
        return value

    @field_validator("apply_stages", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class FilmLimitConfig(Settings):
    """Bounds g tanh(x / g) on the outputs of the FiLM heads."""

    gamma: float = Field(gt=0)
    """Bound of the scale change."""
    beta: float = Field(gt=0)
    """Bound of the shift."""


class ModelConfig(Settings):
    """Network, flow and conditioning."""

    arch_name: Literal["filmflow_concat", "filmflow_dual"] = "filmflow_concat"
    """Network; absent it follows `image_conditioning`. `medsegdiff_flow` is read as filmflow_dual."""
    image_conditioning: Literal["concat", "dual"] | None = Field(default=None, validate_default=True)
    """Image stacked on the state at the stem, or an encoder of its own; the same choice as `arch_name`."""
    backbone_variant: Literal["plain", "msd_v0"] = "plain"
    """msd_v0 keeps the conventions of imported weights (dual only)."""
    image_channels: Literal[1, 3] = 1
    """Channels of the image."""
    image_size: int = Field(default=224, ge=8)
    """Side of a training crop and of a window in pixels; the same number as `data.image_size`."""
    model_channels: int = Field(default=32, ge=8)
    """Channels at full resolution, a multiple of 8."""
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    """Channel factor per resolution, full resolution first; its length is the number of decoder stages."""
    attn_resolutions: tuple[int, ...] = ()
    """Resolutions (image_size, /2, /4, ...) with full softmax attention."""
    level_attention: Literal["linear", "none"] | None = None
    """Attention of all other resolutions; null is linear for msd_v0 and none otherwise."""
    fourier_grid: int = Field(default=32, ge=4, multiple_of=2)
    """Rows of the learned Fourier maps of `dual`, resized to the picture; msd_v0 has maps of image_size instead."""
    mid_layers: int = Field(default=1, ge=1)
    """Layers of the bottleneck's transformer (`dual`)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside residual blocks."""
    time_scale: float = Field(default=1000.0, gt=0)
    """Factor on t before its sinusoidal embedding."""
    use_gradient_checkpointing: bool = operational(False)
    """Compute residual blocks twice to save memory."""
    mode: Literal["cfm_continuous", "dfm_binary"] = "cfm_continuous"
    """Gaussian noise and a straight path, or binary pixels that flip from noise to data."""
    prediction: Literal["endpoint", "velocity"] = "endpoint"
    """What the network gives in cfm_continuous: logits of the mask, or the velocity."""
    target_kind: Literal["hard", "soft", "distance"] = "hard"
    """Flow target: 2m - 1, a soft label in [-1, 1], or the truncated signed distance."""
    sigma: float = Field(default=0.0, ge=0)
    """Spread of a Brownian bridge around the path; 0 is the straight path."""
    ot_coupling: Literal["none"] = "none"
    """Pairing noise with masks inside a batch would skew the prior given the image: none is the only choice."""
    t_sampling: Literal["stratified", "uniform", "logit_normal"] = "stratified"
    """How training times are drawn."""
    loss: Literal["bce_dice", "bce", "dice"] = "bce_dice"
    """Terms of the mask loss (endpoint, dfm_binary, and the auxiliary loss of velocity)."""
    lambda_auxiliary: float = Field(default=0.0, ge=0)
    """Weight of the mask loss on the endpoint estimate under `prediction: velocity`, times t."""
    lambda_cldice: float = Field(default=0.0, ge=0)
    """Weight of the soft centreline Dice after a quarter of the training."""
    junction_weight: float = Field(default=0.0, ge=0)
    """w: pixels of the flow loss weigh 1 + w J, J the true junction heat."""
    timesteps: int = Field(default=4, ge=1)
    """K: integration steps of a prediction."""
    solver: Literal["euler", "heun", "midpoint", "dopri5"] = "euler"
    """Integrator of cfm_continuous."""
    dfm_sampler: Literal["euler"] = "euler"
    """Sampler of dfm_binary."""
    dfm_eps: float = Field(default=1e-6, gt=0, lt=0.1)
    """Smallest 1 - t the dfm_binary sampler divides by."""
    num_ensemble: int = Field(default=1, ge=1)
    """Members whose probabilities are averaged, each from noise of its own."""
    use_sliding_infer: bool = False
    """Predict images larger than `image_size` in overlapping windows instead of at once."""
    patch_plan: tuple[tuple[int, int], ...] | None = None
    """Crops as [size, number] per image; every size is `image_size`, because a batch holds one size."""
    use_vlm_film: bool = True
    """Modulate decoder stages by the condition."""
    vlm_film_decoder_stages: tuple[int, ...] | None = Field(default=None, validate_default=True)
    """Decoder stages with a FiLM head, 0 = deepest; a list or `all`. Absent in a new model: [0, 1]."""
    film_apply_point: Literal["post_block1", "post_block2"] = "post_block1"
    """After which residual block of a decoder stage FiLM is applied."""
    head_variant: Literal["silu_v1", "relu_v0"] = "silu_v1"
    """Activation of the heads; relu_v0 is that of imported weights."""
    film_limit: FilmLimitConfig | None = None
    """Bounds on the heads' outputs; null has none."""
    film_heads: Literal["keep_common", "reinit"] | None = None
    """When a film stage starts from another film stage with other decoder stages: keep the heads both have, or none."""
    film_warmup_epochs: int = Field(default=0, ge=0)
    """Epochs with FiLM strength 0."""
    film_ramp_epochs: int = Field(default=0, ge=0)
    """Epochs in which FiLM strength then rises linearly to 1."""
    cond_source: Literal["image", "text", "image+text", "probe"] = "image"
    """What the encoder is asked."""
    vlm_scope: Literal["image", "crop"] = "image"
    """One condition per image, shared by its crops and windows, or one per crop; in training and evaluation alike."""
    cond_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability with which training drops a sample's condition."""
    require_condition: bool = False
    """A sample without a condition is an error instead of FiLM off."""
    vlm_film_config: VlmFilmConfig = VlmFilmConfig()
    junction_gating_config: JunctionGatingConfig = JunctionGatingConfig()
    learning_rate: float | None = Field(default=None, gt=0)
    """Another name of trainer.learning_rate; moved there."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Another name of trainer.weight_decay; moved there."""
    use_ema: bool | None = None
    """Another name of trainer.use_ema; moved there."""
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    """Another name of trainer.ema_decay; moved there."""

    @field_validator("image_conditioning")
    @classmethod
    def _one_architecture(cls, value: str | None, info: ValidationInfo) -> str:
        arch = info.data.get("arch_name")
        if arch is None:
            return value or "concat"  # the fault of arch_name is reported
        named = str(arch).removeprefix("filmflow_")
        if value and value != named:
            raise ValueError(f"E_CONTRADICTION: {value!r} contradicts arch_name {arch!r}; give one of the two")
        return named

    @field_validator("channel_mult")
    @classmethod
    def _channels_fit_groups(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if "model_channels" in info.data:
            as_value_error(lambda: decoder_channels(info.data["model_channels"], value))
        return value

    @field_validator("vlm_film_decoder_stages", mode="before")
    @classmethod
    def _stages_resolved(cls, value: Any, info: ValidationInfo) -> Any:
        if not {"model_channels", "channel_mult", "use_vlm_film"} <= set(info.data):
            return None  # their own faults are reported
        channels = decoder_channels(info.data["model_channels"], info.data["channel_mult"])
        use = info.data["use_vlm_film"]
        return as_value_error(lambda: resolve_decoder_stages(value, channels, use)).stages or None

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        raise_faults(model_faults(self))
        return self

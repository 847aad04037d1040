"""The FiLM plan: which decoder stages are modulated, how wide, where and by what; immutable, one per model. No torch.

A decoder stage is numbered from the deepest (0) to full resolution (S-1), S = len(channel_mult). Its channels are
C_s = model_channels * channel_mult[S-1-s]. Every list of decoder stages in a config, a file or a request passes
through this module, so that there is one set of rules and one wording for each fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

from stageline.config import fingerprint
from stageline.errors import ConfigError

ApplyPoint = Literal["post_block1", "post_block2"]
HeadVariant = Literal["silu_v1", "relu_v0"]
StagesOrigin = Literal["config", "default", "metadata", "hparams", "inferred", "override"]
VlmScope = Literal["image", "crop"]

DEFAULT_STAGES = (0, 1)
"""What a new model without a list gets; never used when a file is loaded."""
GROUPS = 8
"""Groups of every GroupNorm; all channel counts are multiples of it."""
SCHEMA = 1

_DISABLE = "an empty stage list is not a way to disable FiLM; set model.use_vlm_film: false"
_DISABLE_GATE = "an empty stage list is not a way to disable the gate; set junction_gating_config.enabled: false"


class ResolvedStages(NamedTuple):
    """Decoder stages in ascending order and where they came from."""

    stages: tuple[int, ...]
    origin: StagesOrigin


def decoder_channels(model_channels: int, channel_mult: Sequence[int]) -> tuple[int, ...]:
    """Channels per decoder stage, deepest first: 32 x [1, 2, 3, 4] -> (128, 96, 64, 32).

    Raises ConfigError E_CHANNELS where a count is no positive multiple of 8, which GroupNorm needs.
    """
    if not channel_mult:
        raise ConfigError(
            "channel_mult is empty", remedy="give one factor per resolution, e.g. [1, 2, 3, 4]", code="E_CHANNELS"
        )
    wrong = [c for c in (model_channels, *(model_channels * m for m in channel_mult)) if c < 1 or c % GROUPS]
    if wrong:
        raise ConfigError(
            f"model_channels {model_channels!r} x channel_mult {list(channel_mult)!r} gives the channel counts "
            f"{wrong}, which are not positive multiples of {GROUPS}",
            remedy=f"choose model_channels divisible by {GROUPS} (GroupNorm has {GROUPS} groups)",
            code="E_CHANNELS",
        )
    return tuple(model_channels * m for m in reversed(channel_mult))


def describe_stages(channels: Sequence[int]) -> str:
    """ "decoder stages 0..3 (0 = deepest, 128 ch; 3 = full resolution, 32 ch)" """
    last = len(channels) - 1
    if last == 0:
        return f"decoder stage 0 only ({channels[0]} ch)"
    return f"decoder stages 0..{last} (0 = deepest, {channels[0]} ch; {last} = full resolution, {channels[last]} ch)"


def range_fault(stage: int, channels: Sequence[int]) -> str:
    """The sentence for a decoder stage that the model has not."""
    return f"decoder stage {stage} does not exist: this model has {describe_stages(channels)}"


def _raise(key: str, found: list[tuple[str, str]], remedy: str) -> None:
    """One ConfigError with all faults of a list; the first one's code."""
    if found:
        sentence = "; ".join(dict.fromkeys(text for _, text in found))
        raise ConfigError(f"{key}: {sentence}", remedy=remedy, code=found[0][0])


def check_stage_list(
    value: Any,
    channels: Sequence[int],
    *,
    key: str = "vlm_film_decoder_stages",
    empty: str = _DISABLE,
    words: str = "all",
) -> tuple[int, ...]:
    """A list of decoder stages, or `all`, as a sorted tuple.

    value: what stands in the config or file.  channels: per decoder stage, deepest first.  key: its name in messages.
    words: the words the key takes besides a list.
    Raises ConfigError with E_TYPE, E_EMPTY, E_DUPLICATE or E_RANGE.
    """
    legal = range(len(channels))
    remedy = f"give a list of indices out of {list(legal)}, or {words!r}"
    if value == "all":
        return tuple(legal)
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        _raise(key, [("E_TYPE", f"found {value!r}, expected a list of integers or {words!r}")], remedy)
    if len(value) == 0:
        _raise(key, [("E_EMPTY", empty)], remedy)
    faults: list[tuple[str, str]] = []
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int):
            faults.append(("E_TYPE", f"{item!r} in {list(value)!r} is no integer"))
        elif item not in legal:
            faults.append(("E_RANGE", range_fault(item, channels)))
        elif sum(1 for other in value if type(other) is int and other == item) > 1:
            faults.append(("E_DUPLICATE", f"decoder stage {item} stands twice in {list(value)!r}"))
    _raise(key, faults, remedy)
    return tuple(sorted(value))


def resolve_decoder_stages(value: Any, channels: Sequence[int], use_vlm_film: bool) -> ResolvedStages:
    """`vlm_film_decoder_stages` of a *new* model: the list, or [0, 1] where it is absent (null).

    channels: from `decoder_channels`.  A model without FiLM has no decoder stages, and may name none
    (E_CONTRADICTION). Raises ConfigError with the codes of `check_stage_list` besides.
    """
    if not use_vlm_film:
        if value is not None:
            _raise(
                "vlm_film_decoder_stages",
                [("E_CONTRADICTION", f"found {value!r} although use_vlm_film is false")],
                "take the list out, or set model.use_vlm_film: true",
            )
        return ResolvedStages((), "config")
    if value is None:
        return ResolvedStages(check_stage_list(DEFAULT_STAGES, channels), "default")
    return ResolvedStages(check_stage_list(value, channels), "config")


def resolve_gate_stages(value: Any, film_stages: Sequence[int], channels: Sequence[int]) -> tuple[int, ...]:
    """`junction_gating_config.apply_stages` of an enabled gate: `same_as_film`, `all`, or a subset of the FiLM stages.

    Raises ConfigError with the codes of `check_stage_list`, or E_GATE_STAGE: gating a decoder stage without FiLM
    would do nothing.
    """
    if value == "same_as_film":
        return tuple(film_stages)
    key = "junction_gating_config.apply_stages"
    stages = check_stage_list(value, channels, key=key, empty=_DISABLE_GATE, words="same_as_film")
    foreign = [s for s in stages if s not in film_stages]
    if foreign:
        raise ConfigError(
            f"{key}: {list(stages)} holds {foreign}, but FiLM is applied at {list(film_stages)} only, "
            "and a gate without FiLM does nothing",
            remedy="name a subset of the FiLM decoder stages, or same_as_film",
            code="E_GATE_STAGE",
        )
    return stages


@dataclass(frozen=True, kw_only=True)
class FilmPlan:
    """Everything that model, condition, checkpoint and evaluation must agree on about FiLM.

    decoder_channels: C_s per decoder stage, deepest first.  stages: ascending; () is a model without FiLM.
    apply_point: after the first or the second residual block of a decoder stage.  cond_dim: D.  head_hidden: inner
    width of a head.  gate_stages: subset of `stages`, () without a gate.  gate_value: FiLM strength that is left at a
    junction, in [0, 1].  vlm_scope: one condition per image or per crop.  cond_source: what the condition is made of.
    Raises ConfigError where the fields contradict each other.
    """

    decoder_channels: tuple[int, ...]
    stages: tuple[int, ...]
    stages_origin: StagesOrigin = "config"
    apply_point: ApplyPoint = "post_block1"
    cond_dim: int = 256
    head_hidden: int = 256
    head_variant: HeadVariant = "silu_v1"
    gate_stages: tuple[int, ...] = ()
    gate_value: float = 0.0
    vlm_scope: VlmScope = "image"
    cond_source: str = "image"

    def __post_init__(self) -> None:
        for name in ("decoder_channels", "stages", "gate_stages"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.stages:
            object.__setattr__(self, "stages", check_stage_list(self.stages, self.decoder_channels))
        if self.gate_stages:
            gate = resolve_gate_stages(self.gate_stages, self.stages, self.decoder_channels)
            object.__setattr__(self, "gate_stages", gate)
        if not 0.0 <= self.gate_value <= 1.0:
            raise ConfigError(f"gate_value_in_junction is {self.gate_value!r}, expected a number in [0, 1]")
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {list(get_args(kind))}")
        for name in ("cond_dim", "head_hidden"):
            if self.stages and getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected a positive number")

    @property
    def n_stages(self) -> int:
        """S, how many decoder stages the model has."""
        return len(self.decoder_channels)

    @property
    def head_widths(self) -> dict[int, int]:
        """Outputs of the head of each selected decoder stage: 2 * C_s."""
        return {s: 2 * self.decoder_channels[s] for s in self.stages}

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON without `stages_origin`."""
        plain = self.to_json()
        del plain["stages_origin"]
        return fingerprint(plain)[:16]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, with `schema` and `n_stages`."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"schema": SCHEMA, "n_stages": self.n_stages, **plain}


_CHOICES: dict[str, Any] = {
    "stages_origin": StagesOrigin,
    "apply_point": ApplyPoint,
    "head_variant": HeadVariant,
    "vlm_scope": VlmScope,
}


def stage_lines(plan: FilmPlan, image_size: int) -> tuple[str, ...]:
    """The rows of `stage_table` as lines of text, under a head; the index is the legal name, the other counts down."""
    film, gate = list(plan.stages) or "none", list(plan.gate_stages) or "none"
    lines = [f"decoder stages (0 = deepest), FiLM at {film}, gate at {gate}:"]
    for row in stage_table(plan, image_size):
        s, side = row["decoder_stage"], row["resolution"]
        marks = [f"FiLM head {row['head_outputs']}"] if row["film"] else []
        marks += ["gate"] if row["gate"] else []
        place = f"  {s} ({plan.n_stages - s} from the output)"
        lines.append(f"{place}  {f'{side} x {side}':>11}  {row['channels']:>4} channels  {', '.join(marks)}".rstrip())
    return tuple(lines)


def stage_table(plan: FilmPlan, image_size: int) -> list[dict[str, Any]]:
    """One row per decoder stage for people: index, resolution, channels, head outputs, whether FiLM and gate are on."""
    last = plan.n_stages - 1
    return [
        {
            "decoder_stage": s,
            "resolution": image_size >> (last - s),
            "channels": c,
            "head_outputs": 2 * c,
            "film": s in plan.stages,
            "gate": s in plan.gate_stages,
        }
        for s, c in enumerate(plan.decoder_channels)
    ]

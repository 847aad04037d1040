"""Config against checkpoint, and what a native file's tensors prove; differences are refused with both sides shown.

A native file says its decoder stages three times: metadata, safetensors header, tensor names (`name_facts`); admission
compares the three. A config may be silent about them, say the same, or ask for less in an evaluation (an ablation);
anything else would run heads that were never trained, or not run heads that were. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stageline.errors import CheckpointError, difference
from stageline.families.film_flow.config.film_plan import range_fault
from stageline.families.film_flow.imports.evidence import (
    NATIVE_CHANNELS,
    decoder_channels_of,
    describe_heads,
    native_evidence,
    restore_stages,
)

Verb = Literal["evaluate", "resume", "seed"]
FilmHeads = Literal["keep_common", "reinit"]
COMPARED = ("apply_point", "head_variant", "gate_stages", "vlm_scope", "target_kind", "mode")
"""Facts under the same rule as the decoder stages: silent or equal."""


def name_facts(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What tensor names and shapes of a native file prove: decoder channels, and where heads are.

    Raises CheckpointError E_HEAD_SHAPE where a head is not as wide as its decoder stage asks, E_RANGE where there is no
    such decoder stage.
    """
    evidence = native_evidence("tensor names", shapes, None)
    stages = restore_stages(evidence).stages if evidence.head_widths else ()
    return {"vlm_film_trained_stages": list(stages), "decoder_channels": list(evidence.channels)}


@dataclass(frozen=True)
class Agreement:
    """What a verb does with the decoder stages of a file.

    stages: of the model that is built.  active: those that are applied; fewer is an ablation.
    loaded, fresh, dropped: heads by decoder stage, where a new stage is seeded from the file.
    """

    stages: tuple[int, ...]
    active: tuple[int, ...]
    loaded: tuple[int, ...]
    fresh: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()

    @property
    def ablation(self) -> bool:
        """Whether trained heads are left out."""
        return self.active != self.stages


@dataclass(frozen=True)
class TrainedFilm:
    """The FiLM side of a checkpoint: its name for messages, decoder stages and where that is known from, channels."""

    where: str
    stages: tuple[int, ...]
    channels: tuple[int, ...]
    origin: str = "metadata"

    @property
    def heads(self) -> str:
        """The heads with their widths."""
        return describe_heads({s: 2 * self.channels[s] for s in self.stages})


def agree_stages(
    verb: Verb,
    asked: Sequence[int] | None,
    trained: TrainedFilm,
    *,
    film_active: Sequence[int] | None = None,
    film_heads: FilmHeads | None = None,
) -> Agreement:
    """Who wins: the checkpoint, unless the config says the same or a declared difference.

    asked: `model.vlm_film_decoder_stages` as the user states it, None where it is absent.
    film_active: an ablation, for `evaluate` only.  film_heads: what `seed` does with other decoder stages.
    Raises CheckpointError E_CFG_VS_CKPT with both lists.
    """
    wanted = trained.stages if asked is None else tuple(sorted(asked))
    if wanted != trained.stages and not (verb == "seed" and film_heads):
        raise CheckpointError(
            f"config asks for FiLM decoder stages {list(wanted)} but {trained.where} was trained with "
            f"{list(trained.stages)} (source: {trained.origin}; heads: {trained.heads})",
            remedy="remove model.vlm_film_decoder_stages to use the checkpoint's, set evaluate.film_active=[…] for an "
            "ablation, or start a new run seeded from it with model.film_heads: keep_common or reinit",
            code="E_CFG_VS_CKPT",
        )
    if verb == "seed" and film_heads == "reinit":
        return Agreement(wanted, wanted, (), wanted, trained.stages)
    if verb == "seed":
        old, new = set(trained.stages), set(wanted)
        loaded, fresh, dropped = sorted(old & new), sorted(new - old), sorted(old - new)
        return Agreement(wanted, wanted, tuple(loaded), tuple(fresh), tuple(dropped))
    if film_active is None or verb == "resume":
        return Agreement(wanted, wanted, wanted)
    return Agreement(wanted, _ablation(tuple(sorted(film_active)), trained), wanted)


def _ablation(active: tuple[int, ...], trained: TrainedFilm) -> tuple[int, ...]:
    foreign = [s for s in active if s not in trained.stages]
    if not foreign:
        return active
    absent = [range_fault(s, trained.channels) for s in foreign if s not in range(len(trained.channels))]
    raise CheckpointError(
        f"evaluate.film_active={list(active)} names {foreign}, but {trained.where} was trained with FiLM decoder "
        f"stages {list(trained.stages)} (source: {trained.origin}; heads: {trained.heads}); "
        + ("; ".join(absent) or "no trained head exists there"),
        remedy=f"set evaluate.film_active=[…] to a subset of {list(trained.stages)}",
        code="E_CFG_VS_CKPT",
    )


def agree_facts(verb: Verb, asked: Mapping[str, Any], facts: Mapping[str, Any], where: str) -> None:
    """The rule of the decoder stages for the other facts: what the config states must be what the file says.

    asked: only what the config states.  Raises CheckpointError E_CFG_VS_CKPT with all differences.
    """
    stated = {key: _plain(asked[key]) for key in COMPARED if asked.get(key) is not None}
    lines = difference({key: _plain(facts.get(key, "absent")) for key in stated}, stated)
    if lines:
        raise CheckpointError(
            f"{verb}: the config differs from {where} (checkpoint -> config): {'; '.join(lines)}",
            remedy="remove these keys to use the checkpoint's, or start a new run",
            code="E_CFG_VS_CKPT",
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def trained_film(where: str, shapes: Mapping[str, Sequence[int]], metadata_stages: Any) -> TrainedFilm:
    """The FiLM side of a native file, its names cross-examined with its metadata."""
    restored = restore_stages(native_evidence(where, shapes, metadata_stages))
    return TrainedFilm(where, restored.stages, decoder_channels_of(shapes, NATIVE_CHANNELS), restored.origin)

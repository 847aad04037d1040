"""Which decoder stages a file was trained with: three levels of evidence, cross-examined. No torch, reads no file.

L1 metadata (`vlm_film_trained_stages`), L2 hyper-parameters (`vlm_film_decoder_stages`, null says nothing), L3 the
widths of the heads themselves. Positional heads of imported files give candidates (an equal width may stand for
several decoder stages); heads of our own files carry their decoder stage in the name, so L3 is exact. No level is
trusted alone against another, and nothing falls back to a default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NoReturn

from stageline.errors import CheckpointError, ConfigError
from stageline.families.film_flow.config.film_plan import StagesOrigin, check_stage_list

Stages = tuple[int, ...]
HEAD = re.compile(r"^film\.(\d+)\.fc2\.weight$")
OVERRIDE = "import.film_stages"


def head_widths_of(shapes: Mapping[str, Sequence[int]]) -> dict[int, int]:
    """Decoder stage -> outputs of its head, from our own tensor names; 0 for a head whose last layer is missing."""
    found = {int(name.split(".")[1]): 0 for name in shapes if re.match(r"^film\.\d+\.", name)}
    for name, shape in shapes.items():
        match = HEAD.match(name)
        if match:
            found[int(match[1])] = int(shape[0])
    return dict(sorted(found.items()))


def decoder_channels_of(shapes: Mapping[str, Sequence[int]], template: str) -> tuple[int, ...]:
    """Channel plan of a file: rows of the last convolution of each decoder stage's first residual block.

    template: the tensor's name with `{s}` for the decoder stage. () where the file has none of them.
    """
    channels: list[int] = []
    while (name := template.format(s=len(channels))) in shapes:
        channels.append(int(shapes[name][0]))
    return tuple(channels)


NATIVE_CHANNELS = "backbone.dec.{s}.res1.block2.conv.weight"


def describe_heads(widths: Mapping[int, int]) -> str:
    """ "film.0 (256), film.1 (192)" """
    return ", ".join(f"film.{s} ({width})" for s, width in widths.items()) or "none"


def infer_stages(widths: Sequence[int], channels: Sequence[int]) -> tuple[Stages, ...]:
    """All strictly increasing assignments of heads to decoder stages with width = 2 * C_s.

    widths: outputs of the heads in file order, not empty.  channels: per decoder stage, deepest first.
    Raises CheckpointError E_HEAD_SHAPE where there is none.
    """
    odd = [width for width in widths if width % 2 or width // 2 not in channels]
    candidates = tuple(
        stages
        for stages in combinations(range(len(channels)), len(widths))
        if all(2 * channels[s] == width for s, width in zip(stages, widths, strict=True))
    )
    if odd or not candidates:
        blame = f"{odd} fit no decoder stage" if odd else "no ascending decoder stages have these widths in this order"
        raise CheckpointError(
            f"head widths {list(widths)}: {blame}; the file's decoder channels are {list(channels)}, so heads are "
            f"{[2 * c for c in channels]} wide",
            remedy="the heads do not belong to this backbone; use the file they were trained with",
            code="E_HEAD_SHAPE",
        )
    return candidates


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a file says, before anything is built.

    where: the file's name.  metadata_stages, hparams_stages: raw values of L1 and L2, None where absent.
    use_vlm_film: as the file's hyper-parameters say, None where they do not.
    head_widths: outputs of the last layer per head in file order; 0 where that layer is missing.
    head_stages: the decoder stages in the heads' names; None where heads are positional.
    channels: from the file's own backbone, () where it has none.  hparams_channels: model_channels x channel_mult
    reversed, () where not stated.
    """

    where: str
    metadata_stages: Any = None
    hparams_stages: Any = None
    use_vlm_film: bool | None = None
    head_widths: tuple[int, ...] = ()
    head_stages: tuple[int, ...] | None = None
    channels: tuple[int, ...] = ()
    hparams_channels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Restored:
    """The outcome: stages and origin, what was noticed, and the evidence per level for a report."""

    stages: Stages
    origin: StagesOrigin
    candidates: tuple[Stages, ...]
    warnings: tuple[str, ...]
    levels: Mapping[str, Any]


def restore_stages(evidence: Evidence, override: Sequence[int] | None = None) -> Restored:
    """The decoder stages a file was trained with.

    override: the user's choice (`import.film_stages`); it settles a conflict or an ambiguity, within what the head
    widths allow, and never contradicts evidence that is unanimous.
    Raises CheckpointError E_HEAD_SHAPE, E_AMBIGUOUS, E_EVIDENCE_CONFLICT, E_NO_EVIDENCE, E_RANGE (E_TYPE, E_DUPLICATE).
    """
    return _Examination(evidence, override).run()


class _Examination:
    """One file's case: the levels read, then the rows of the table one after the other."""

    def __init__(self, evidence: Evidence, override: Sequence[int] | None) -> None:
        self.evidence = evidence
        self.channels = evidence.channels or evidence.hparams_channels
        self.candidates: tuple[Stages, ...] = ()
        self.l1: Stages | None = None
        self.l2: Stages | None = None
        self.override = None if override is None else self._checked(override, OVERRIDE)

    def run(self) -> Restored:
        e = self.evidence
        if e.channels and e.hparams_channels and e.channels != e.hparams_channels:
            self._refuse(
                "E_EVIDENCE_CONFLICT",
                f"the backbone has decoder channels {list(e.channels)}, the hyper-parameters say "
                f"{list(e.hparams_channels)}",
                "the file was put together from two models; use the original",
            )
        if not e.head_widths:
            return self._without_heads()
        self.candidates = self._candidates()
        self.l1 = self._level(e.metadata_stages, "metadata vlm_film_trained_stages")
        self.l2 = self._level(e.hparams_stages, "hyper-parameter vlm_film_decoder_stages")
        if e.use_vlm_film is False and self.override is None:
            self._conflict("the hyper-parameters say use_vlm_film: false, but the file has heads", self.candidates)
        return self._cross_examine()

    def _without_heads(self) -> Restored:
        e = self.evidence
        claimed = bool(e.metadata_stages) or e.use_vlm_film is True
        claimed = claimed or bool(e.hparams_stages and e.use_vlm_film is not False) or bool(self.override)
        if claimed:
            self._refuse(
                "E_NO_EVIDENCE",
                "FiLM is claimed, but the file has no head",
                "use the file that holds the heads, or import it as a model without FiLM",
            )
        return self._accept((), "metadata" if e.metadata_stages is not None else "inferred")

    def _candidates(self) -> tuple[Stages, ...]:
        """L3, never empty."""
        e = self.evidence
        if not self.channels or 0 in e.head_widths:
            nothing = e.metadata_stages is None and e.hparams_stages is None
            what = "the decoder channels cannot be read" if not self.channels else "a head has no last layer"
            self._refuse(
                "E_NO_EVIDENCE" if nothing else "E_HEAD_SHAPE",
                f"the file has {len(e.head_widths)} head(s), but {what}",
                "the file is incomplete; use another",
            )
        if e.head_stages is None:
            return infer_stages(e.head_widths, self.channels)
        for s, width in zip(e.head_stages, e.head_widths, strict=True):
            if s >= len(self.channels):
                self._checked([s], "head names")
            if width != 2 * self.channels[s]:
                self._refuse(
                    "E_HEAD_SHAPE",
                    f"film.{s} has {width} outputs, expected {2 * self.channels[s]} (2 x {self.channels[s]} channels)",
                    "the heads do not belong to this backbone",
                )
        return (e.head_stages,)

    def _level(self, value: Any, name: str) -> Stages | None:
        """A level's stages; None where it says nothing. An override may step over what is not even legal."""
        if value is None:
            return None
        if isinstance(value, (list, tuple)) and not value:
            return ()
        try:
            return self._checked(value, name)
        except CheckpointError:
            if self.override is not None:
                return None
            raise

    def _checked(self, value: Any, name: str) -> Stages:
        try:
            return check_stage_list(value, self.channels or tuple(range(64)), key=name)
        except ConfigError as error:
            raise CheckpointError(
                f"{self.evidence.where}: {error.message}",
                remedy=f"{OVERRIDE}=[…] names the decoder stages, one of {self._shown()}"
                if self.candidates
                else error.remedy,
                code=error.code,
            ) from error

    def _cross_examine(self) -> Restored:
        l1, l2, cands = self.l1, self.l2, self.candidates
        if l1 is not None and l1 not in cands:
            return self._conflict("the metadata contradict the heads", cands)
        if l2 is not None and l2 not in cands:
            if l1 is None:
                return self._conflict("the hyper-parameters contradict the heads", cands)
            warning = (
                f"{self.evidence.where}: metadata say {list(l1)}, hyper-parameters {list(l2)}; the heads fit the "
                f"metadata only, which are taken"
            )
            return self._accept(l1, "metadata", (warning,))
        if l1 is not None and l2 is not None and l1 != l2:
            return self._conflict("metadata and hyper-parameters differ, and the heads fit both", (l1, l2))
        if l1 is not None or l2 is not None:
            return self._accept(l1 if l1 is not None else l2 or (), "metadata" if l1 is not None else "hparams")
        if len(cands) == 1:
            return self._accept(cands[0], "inferred")
        if self.override in cands:
            return self._accept(self.override or (), "override")
        return self._refuse(
            "E_AMBIGUOUS",
            f"head widths {list(self.evidence.head_widths)} fit several choices of decoder stages "
            f"(decoder channels {list(self.channels)}), and nothing else in the file says which",
            f"say which: {OVERRIDE}=[…], one of {self._shown()}",
        )

    def _conflict(self, reason: str, choices: tuple[Stages, ...]) -> Restored:
        """Refuse, unless the user has chosen one of the choices."""
        if self.override is not None and self.override in choices:
            return self._accept(self.override, "override")
        return self._refuse(
            "E_EVIDENCE_CONFLICT",
            reason,
            f"say which: {OVERRIDE}=[…], one of {', '.join(str(list(c)) for c in choices)}",
        )

    def _accept(self, stages: Stages, origin: StagesOrigin, warnings: tuple[str, ...] = ()) -> Restored:
        if self.override is not None and self.override != stages:
            self._refuse(
                "E_EVIDENCE_CONFLICT",
                f"{OVERRIDE}={list(self.override)} contradicts what the file says, {list(stages)}",
                f"take {OVERRIDE} out",
            )
        origin = "override" if self.override is not None else origin
        return Restored(stages, origin, self.candidates, warnings, self.levels())

    def levels(self) -> dict[str, Any]:
        """The evidence per level, for messages and reports."""
        e = self.evidence
        return {
            "metadata": e.metadata_stages,
            "hyper_parameters": e.hparams_stages,
            "heads": [list(c) for c in self.candidates],
            "head_widths": list(e.head_widths),
            "decoder_channels": list(self.channels),
        }

    def _shown(self) -> str:
        return ", ".join(str(list(c)) for c in self.candidates)

    def _refuse(self, code: str, reason: str, remedy: str) -> NoReturn:
        e = self.evidence
        unknown = "unknown"
        raise CheckpointError(
            f"{e.where}: {reason} (metadata: {unknown if e.metadata_stages is None else e.metadata_stages}; "
            f"hyper-parameters: {unknown if e.hparams_stages is None else e.hparams_stages}; "
            f"heads: {self._shown() or 'none'}, widths {list(e.head_widths)})",
            remedy=remedy,
            code=code,
        )


def native_evidence(where: str, shapes: Mapping[str, Sequence[int]], metadata_stages: Any) -> Evidence:
    """Evidence of a file of our own: names carry the decoder stage."""
    widths = head_widths_of(shapes)
    return Evidence(
        where=where,
        metadata_stages=metadata_stages,
        head_widths=tuple(widths.values()),
        head_stages=tuple(widths),
        channels=decoder_channels_of(shapes, NATIVE_CHANNELS),
    )

"""The check that a checkpoint may feed a stage or an evaluation, before anything is read into a model; no torch.

Three verbs: **resume** continues the same stage (everything must be equal), **seed** starts another stage from weights,
**evaluate** measures. Each fact of the family is compared as its rule for the verb says. `account` compares every
tensor on both sides; nothing is cast, reshaped or left over. Where a stage's tensors come from says `ownership`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stageline.checkpoint.layout import CheckpointRef, open_checkpoint
from stageline.checkpoint.metadata import (
    OPTIMIZER_FILE,
    STATE_FILE,
    CheckpointMetadata,
    TensorRecord,
    is_continuable,
    record_fault,
)
from stageline.checkpoint.verify import verify
from stageline.errors import CheckpointError, Faults, difference

Verb = Literal["resume", "seed", "evaluate"]
Rules = Mapping[str, Mapping[str, str]]
NameFacts = Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, Any]]
"""Facts that tensor names and shapes alone prove (which decoder stages have heads, how wide they are)."""


@dataclass(frozen=True)
class Admission:
    """A checkpoint that was let in, and what was noticed: reported differences and ablations, one line each."""

    ref: CheckpointRef
    verb: Verb
    notes: tuple[str, ...] = field(default=())


def account(
    model: Mapping[str, TensorRecord], file: Mapping[str, TensorRecord], *, where: str, external: Collection[str] = ()
) -> tuple[str, ...]:
    """The names that both sides hold, sorted; one CheckpointError with every difference where they are not the same.

    where: the file, for the error.  external: names that files of others supply to the model.
    """
    faults = Faults(CheckpointError, where, "use a checkpoint of the same model, or change the config to match it")
    for name in sorted({*model, *file}):
        own, other = model.get(name), file.get(name)
        if name in external:
            faults.extend([f"{name}: external weights, but the file holds them"] if other is not None else [])
        elif own is None:
            faults.add(f"{name}: in the file, not in the model")
        else:
            fault = record_fault(name, own, other, "the file")
            faults.extend([fault] if fault else [])
    faults.raise_if_any()
    return tuple(sorted(file))


def fact_faults(
    found: Mapping[str, Any], asked: Mapping[str, Any], rules: Rules, verb: Verb
) -> tuple[list[str], list[str]]:
    """(faults, notes) of comparing the facts of a checkpoint with those a config states.

    evaluate compares only what the config states; resume and seed compare all facts of either side. A fact without a
    rule must be equal. `ablatable`: the config may ask for a part of a list, or switch a thing off. `report_both`: what
    one side does not have is no difference.
    """
    faults, notes = [], []
    names = sorted(asked) if verb == "evaluate" else sorted({*found, *asked})
    for name in names:
        a, b = found.get(name, "absent"), asked.get(name, "absent")
        if _plain(a) == _plain(b):
            continue
        rule = rules.get(name, {}).get(verb, "equal")
        if rule == "report_both" and not (a and b):
            continue
        line = f"{name}: checkpoint {a!r}, config {b!r}"
        if rule in ("report", "report_both") or (rule == "ablatable" and _is_part(b, a)):
            notes.append(f"{line} ({'ablation' if rule == 'ablatable' else 'reported'})")
        else:
            faults.append(line)
    return faults, notes


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_part(less: Any, more: Any) -> bool:
    """Whether `less` switches off part of `more`: a sub-list, False for True, None or zero for anything."""
    if isinstance(less, (list, tuple)) and isinstance(more, (list, tuple)):
        return all(item in more for item in less)
    return less is None or less is False or less == 0


def admit(
    ref: CheckpointRef,
    verb: Verb,
    *,
    family: str,
    stages: Collection[str],
    facts: Mapping[str, Any],
    rules: Rules,
    weights: Literal["raw", "ema"] = "raw",
    stage_fingerprint: str | None = None,
    settings: Mapping[str, Any] | None = None,
    name_facts: NameFacts | None = None,
    hashes: bool = True,
    override: str = "",
) -> Admission:
    """Let a checkpoint in for a verb, or raise one CheckpointError with every difference, field by field.

    stages: which stages' checkpoints are legal here.  facts: what the config says about the model (for evaluate: only
    what it states).  rules: fact -> verb -> equal | report | ablatable.  stage_fingerprint, settings: of the stage to
    be resumed.  name_facts: what tensor names prove; must agree with the metadata.  hashes: read every file once now
    (tensors are verified again when they are read).  override: the config change that would allow it, for the error.
    """
    what = f"{ref.uri} may not be used to {verb}"
    remedy = override or "use a checkpoint that fits, or change the config to what the checkpoint was trained with"
    faults = Faults(CheckpointError, what, remedy)
    metadata = open_checkpoint(ref.store, ref.digest).metadata
    if metadata.family != family:
        faults.add(f"family: checkpoint {metadata.family!r}, config {family!r}")
        faults.raise_if_any()
    if metadata.stage not in stages:
        faults.add(f"stage: checkpoint {metadata.stage!r}, expected {' or '.join(map(repr, sorted(stages)))}")
    wrong, notes = fact_faults(metadata.facts, facts, rules, verb)
    faults.extend(wrong)
    if verb == "resume":
        if not is_continuable(metadata):
            faults.add(
                f"schema {metadata.schema_version!r}: an earlier version saved it; it can seed a stage, be evaluated "
                "and exported, but not be continued"
            )
        if stage_fingerprint is not None and stage_fingerprint != metadata.stage_fingerprint:
            lines = difference(metadata.settings, settings or {}) if settings is not None else []
            faults.extend(f"settings: {line}" for line in lines)
            if not lines:
                faults.add("stage fingerprint: data or parents are others than this checkpoint was trained with")
        if not any(name in metadata.files for name in (STATE_FILE, OPTIMIZER_FILE)):
            faults.add("it holds no training state (an import?): it can seed a stage, not be resumed")
    if not metadata.has_weights(weights):
        faults.add(f"it holds no {weights} weights")
    if name_facts is not None:
        faults.extend(name_fact_faults(metadata, name_facts))
    damage = verify(ref, hashes=hashes)
    if damage and not faults.found:
        faults = Faults(CheckpointError, what, "restore its files or use another checkpoint; no setting can allow this")
    faults.extend(damage)
    faults.raise_if_any()
    return Admission(ref, verb, tuple(notes))


def name_fact_faults(metadata: CheckpointMetadata, name_facts: NameFacts) -> list[str]:
    """In what the tensor names of the weights contradict the facts; averaged ones must be among the model's own."""
    own, averaged = metadata.tensors.get("model", {}), metadata.tensors.get("ema", {})
    faults = [f"{name}: averaged, but no own tensor of the model" for name in sorted(set(averaged) - set(own))]
    proven = name_facts({name: record.shape for name, record in metadata.whole.items()})
    for name, value in sorted(proven.items()):
        if _plain(metadata.facts.get(name, "absent")) != _plain(value):
            faults.append(f"{name}: tensor names say {value!r}, metadata {metadata.facts.get(name, 'absent')!r}")
    return faults

"""Whose each tensor of a stage's model is: own, referenced or external, and from which parent it comes. Loads no torch.

*own*: trained here, or kept; in the stage's own files. *referenced*: loaded from a parent below the same root and not
trained; the parent goes on holding it. *external*: untouched weights of others. One pure table, computed from config,
stage and parents; saving, loading, counting and export all go by it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stageline.checkpoint.metadata import CheckpointMetadata, ExternalRecord, OwnerRecord, TensorRecord, record_fault
from stageline.errors import CheckpointError, Faults
from stageline.stage import Inheritance

GIVEN = ("load", "load or external")
"""Outcomes of sections that a parent's tensors are taken for."""
Records = Mapping[str, TensorRecord]
Sections = Mapping[str, Sequence[Inheritance]]
"""role -> what becomes of that parent's sections."""
Patterns = Mapping[str, Sequence[str]]
"""external -> `fnmatch` patterns of the tensors that it supplies."""


@dataclass(frozen=True)
class Origins:
    """Where every tensor of a model comes from when its stage starts, and what becomes of the parents' others.

    loaded: name -> role.  fresh: names.  external: name -> external.  dropped: role -> names that only the parent has,
    or that another parent gives.
    """

    loaded: Mapping[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    external: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def counts(self, role: str) -> dict[str, int]:
        """What one parent gave and did not give, and how many tensors come from elsewhere."""
        loaded = sum(origin == role for origin in self.loaded.values())
        others = {"fresh": len(self.fresh), "dropped": len(self.dropped.get(role, ())), "external": len(self.external)}
        return {"loaded": loaded, **others}


@dataclass(frozen=True)
class Ownership:
    """Every tensor of a model exactly once.

    own: names.  referenced: name -> role of the parent that holds it.  external: name -> external that holds it.
    """

    own: tuple[str, ...]
    referenced: Mapping[str, str] = field(default_factory=dict)
    external: Mapping[str, str] = field(default_factory=dict)


def find_origins(
    model: Records, parents: Mapping[str, Records], sections: Sections, externals: Patterns, *, where: str, partly: bool
) -> Origins:
    """Explain every tensor of the model and of each parent, or raise one CheckpointError with all that is unexplained.

    model: every tensor of the stage's model.  parents: role -> what that parent has to give.  sections: for the same
    roles.  externals: of the stage.  where: the stage, for the error.  partly: whether an optional parent is absent;
    what no section covers then starts fresh, else it is a fault.

    Over all roles every tensor is loaded once, or fresh, or external. A parent that gives nothing is refused; what it
    has beyond that must be dropped by declaration.
    """
    origins, found = _explain(model, parents, sections, externals, partly=partly)
    faults = Faults(CheckpointError, where, "use checkpoints of the same model, or change the config to match them")
    faults.extend(found)
    faults.raise_if_any()
    return origins


def _explain(
    model: Records, parents: Mapping[str, Records], sections: Sections, externals: Patterns, *, partly: bool
) -> tuple[Origins, list[str]]:
    """The origins, and everything that is unexplained."""
    faults: list[str] = []
    claims = {role: _claims({*model, *parents[role]}, parents[role], sections[role], faults) for role in parents}
    loaded: dict[str, str] = {}
    fresh: list[str] = []
    external: dict[str, str] = {}
    for name in sorted(model):
        said = {role: claim[name] for role, claim in claims.items() if name in claim}
        givers = [role for role, outcome in said.items() if outcome == "load"]
        supplier = next((key for key, patterns in externals.items() if _matches(name, patterns)), None)
        if len(givers) > 1:
            faults.append(f"{name}: would be loaded from {' and '.join(givers)}")
        elif givers and "fresh" in said.values():
            faults.append(f"{name}: would be loaded from {givers[0]} and start fresh")
        elif givers:
            fault = record_fault(name, model[name], parents[givers[0]].get(name), _where(givers[0], parents))
            loaded[name] = givers[0]
            if fault:
                faults.append(fault)
        elif "external" in said.values() or (not said and supplier is not None):
            if supplier is None:
                faults.append(f"{name}: external weights, and no external of the stage supplies it")
            faults.extend(f"{name}: external weights, but the file holds them" for p in parents.values() if name in p)
            external[name] = supplier or ""
        elif "fresh" in said.values() or (not said and (partly or not parents)):
            fresh.append(name)
        elif said:
            faults.append(f"{name}: to be dropped, but the model has it")
        elif not any(name in file for file in parents.values()):
            known = ", ".join(section.section for declared in sections.values() for section in declared)
            faults.append(f"{name}: belongs to no section; sections: {known or 'none'}")
    dropped: dict[str, tuple[str, ...]] = {}
    for role, file in parents.items():
        for name in sorted(set(file) - set(model)):
            if claims[role].get(name) == "load":
                faults.append(f"{name}: in {_where(role, parents)}, not in the model")
            elif claims[role].get(name) == "external":
                faults.append(f"{name}: external weights, but the file holds them")
        dropped[role] = tuple(name for name in sorted(file) if loaded.get(name) != role)
        if not any(origin == role for origin in loaded.values()):
            faults.append(f"parent {role!r} gives this stage nothing; its tensors are all fresh, external or dropped")
    return Origins(loaded, tuple(fresh), external, dropped), faults


def parent_faults(parents: Mapping[str, Records], sections: Sections) -> list[str]:
    """What the parents' tensors alone prove wrong, whatever the model is; so a plan can say it, which builds none.

    parents: role -> what that parent has to give.  sections: for the same roles.

    Each section that is to be loaded has a tensor in its parent, every parent gives something, every tensor of a parent
    is explained, and no two roles give the same one: the rules of `find_origins` for the model of what they give.
    """
    faults = []
    for role, declared in sections.items():
        for section in declared:
            if section.outcome == "load" and not any(_matches(name, section.patterns) for name in parents[role]):
                faults.append(
                    f"section {section.section!r} ({', '.join(section.patterns)}) is to be loaded from "
                    f"{_where(role, parents)}, which has no tensor of it"
                )
    given = {
        name: record
        for role, file in parents.items()
        for name, record in file.items()
        if any(section.outcome in GIVEN and _matches(name, section.patterns) for section in sections[role])
    }
    return faults + _explain(given, parents, sections, {}, partly=True)[1]


def _where(role: str, parents: Mapping[str, Records]) -> str:
    return "the file" if len(parents) == 1 else f"the file of {role!r}"


def _claims(names: Iterable[str], file: Records, sections: Sequence[Inheritance], faults: list[str]) -> dict[str, str]:
    """name -> outcome that one parent's sections declare; a fault where they contradict each other or say nothing."""
    claims: dict[str, str] = {}
    for name in sorted(names):
        found = {s.outcome: s for s in sections if _matches(name, s.patterns)}
        if len(found) > 1:
            faults.append(f"{name}: {', '.join(f'{s.section} says {outcome}' for outcome, s in found.items())}")
        if found:
            outcome = next(iter(found))
            either = "load" if name in file else "external"
            claims[name] = either if outcome == "load or external" else outcome
        elif name in file:
            known = ", ".join(s.section for s in sections) or "none"
            faults.append(f"{name}: belongs to no section; sections: {known}")
    return claims


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def ownership(
    model: Records,
    trained: Collection[str],
    buffers: Collection[str],
    origins: Origins,
    sections: Sections,
    inside: Collection[str],
) -> Ownership:
    """Whose each tensor of a stage's model is.

    trained: names that train.  buffers: names that are no parameters.  origins: where they come from.  sections: by
    role, as for the origins.  inside: roles whose parent lies below the stage's own root.

    A frozen parameter that a parent inside the root gives is referenced. So is a buffer, where nothing of its section
    trains: elsewhere it belongs to what changes it.
    """
    training = set(trained)
    moving = {
        (role, name)
        for role, declared in sections.items()
        for section in declared
        if any(_matches(name, section.patterns) for name in training)
        for name in buffers
        if _matches(name, section.patterns)
    }
    own: list[str] = []
    referenced: dict[str, str] = {}
    external: dict[str, str] = {}
    for name in sorted(model):
        role = origins.loaded.get(name)
        if name in origins.external and name not in training:
            external[name] = origins.external[name]
        elif role is None or name in training or role not in inside or (role, name) in moving:
            own.append(name)
        else:
            referenced[name] = role
    return Ownership(tuple(own), referenced, external)


def recorded_ownership(metadata: CheckpointMetadata) -> Ownership:
    """The table that a checkpoint was saved by."""
    return Ownership(
        tuple(sorted(metadata.tensors.get("model", {}))),
        {name: role for role, owner in metadata.referenced.items() for name in owner.tensors},
        {name: key for key, external in metadata.externals.items() for name in external.tensors},
    )


def owner_records(owned: Ownership, model: Records, owners: Mapping[str, OwnerRecord]) -> dict[str, OwnerRecord]:
    """What the metadata says of each owner. owners: role -> its record, its tensors left open."""
    found = {}
    for role, owner in owners.items():
        names = [name for name, holder in owned.referenced.items() if holder == role]
        if names:
            found[role] = owner.model_copy(update={"tensors": {name: model[name] for name in sorted(names)}})
    return found


def external_records(
    owned: Ownership, model: Records, externals: Mapping[str, ExternalRecord]
) -> dict[str, ExternalRecord]:
    """What the metadata says of each external, whether it supplies tensors of the state dict or not."""
    found = {}
    for key, external in externals.items():
        names = sorted(name for name, holder in owned.external.items() if holder == key)
        found[key] = external.model_copy(update={"tensors": {name: model[name] for name in names}})
    return found

"""A plan as data: one item per step of the pipeline, with its action and the reasons for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stageline.errors import PlanError
from stageline.stage import Inheritance

PREPARE_ITEM: Literal["prepare_data"] = "prepare_data"
EVALUATE_ITEM: Literal["evaluate"] = "evaluate"
REPORT_ITEM: Literal["report"] = "report"
PLAN = "plan.json"
"""Where the plan of the newest command lies in a run."""

Action = Literal[
    "run", "reuse", "continue", "depends", "blocked", "not selected", "reuse (not selected)", "not evaluated"
]
"""depends: whether it is made anew or reused can be said only once its data are prepared; of the data themselves, only
by the job that sees their sources. not evaluated: no stage of the run has anything to evaluate."""
Kind = Literal["prepare_data", "stage", "evaluate", "report"]


@dataclass(frozen=True)
class Item:
    """One step of the pipeline.

    reasons: why this action, one sentence each; `key: old -> new` where a setting changed.
    remedies: what lifts a block, one sentence each.
    notes: what is worth knowing beforehand: reported facts, what trains, superseded work that is kept.
    steps: optimizer steps of the stage; None where it is none or the number of samples is not known yet.
    from_step: where a continued stage goes on.
    sections: role -> what becomes of each section of that parent's tensors.
    reference: what is reused or continued, as `<uri>@sha256:<digest>`.
    parameters: tensor elements {"trained": n, "total": n}; recorded by an earlier run, or counted.
    seconds: expected duration, from the pace an earlier run recorded.  is_estimate: from rates measured elsewhere.
    """

    name: str
    kind: Kind
    action: Action
    reasons: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    steps: int | None = None
    from_step: int = 0
    reference: str = ""
    parents: Mapping[str, str] = field(default_factory=dict)
    sections: Mapping[str, Sequence[Inheritance]] = field(default_factory=dict)
    parameters: Mapping[str, int] | None = None
    seconds: float | None = None
    is_estimate: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "action": self.action,
            "reasons": list(self.reasons),
            "remedies": list(self.remedies),
            "notes": list(self.notes),
            "steps": self.steps,
            "from_step": self.from_step,
            "reference": self.reference,
            "parents": dict(self.parents),
            "sections": {role: [section.to_json() for section in found] for role, found in self.sections.items()},
            "parameters": dict(self.parameters) if self.parameters is not None else None,
            "expected_seconds": round(self.seconds, 1) if self.seconds is not None else None,
            "expected_is_estimate": self.is_estimate,
        }


@dataclass(frozen=True)
class Plan:
    """All items of a run, in the order of the pipeline.

    notes: what the family says about the last stage's model, and which keys of the file the command line replaces.
    """

    family: str
    run: str
    uri: str
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Item:
        return next(item for item in self.items if item.name == name)

    @property
    def blocked(self) -> tuple[Item, ...]:
        """The items that keep the run from starting."""
        return tuple(item for item in self.items if item.action == "blocked")

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "stageline-plan/1",
            "family": self.family,
            "run": self.run,
            "uri": self.uri,
            "items": [item.to_json() for item in self.items],
            "notes": list(self.notes),
        }


def blocked_error(plan: Plan) -> PlanError:
    """Every blocked item of a plan as one error."""
    first: dict[str, str] = {}
    for item in plan.blocked:
        for reason in item.reasons:
            first.setdefault(reason, item.name)
    lines = [f"  - {name}: {reason}" for reason, name in first.items()]
    remedies = dict.fromkeys(remedy for item in plan.blocked for remedy in item.remedies)
    return PlanError(f"the run {plan.run!r} is blocked\n" + "\n".join(lines), remedy=" ".join(remedies))

"""A trial of an installation: prepare data, train one stage and check its checkpoint, in one pod on its own disk.

`helm test` runs it. Nothing outside the pod's scratch space is read or written; the config is the smallest preset of
the family that the job names, unless the pod was given one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stageline.errors import ConfigError, StagelineError
from stageline.pod.attempt import Attempt, run_program, write_config
from stageline.pod.settings import USAGE
from stageline.telemetry import FailureRecord

if TYPE_CHECKING:
    from stageline.config import RunConfig
    from stageline.contract import FamilyConfig

PRESET = "tiny"
"""Every family has it: seconds of training on data it makes itself."""


def run_trial(attempt: Attempt) -> FailureRecord | None:
    """None for success."""
    from stageline.checkpoint.layout import StageDir
    from stageline.checkpoint.verify import verify
    from stageline.families import family_config, parse_config, raw_preset
    from stageline.stage import stage_config

    root = attempt.scratch / "trial"
    family = attempt.pod.options("family")
    if not attempt.pod.config and not family:
        raise ConfigError("a trial of which family? the job names none", remedy=USAGE)
    config = trial_config(attempt.pod.config or raw_preset(family[-1], PRESET), root)
    typed = parse_config(config, where="the trial's config")
    declared = family_config(typed.family)
    wanted = with_parents(declared, typed, attempt.pod.stage)
    file = str(write_config(attempt.scratch, {**config, "stages": wanted}))  # an optional parent is not waited for
    own = replace(attempt, pod=replace(attempt.pod, nodes=1, processes=1))
    for words in (["prepare"], *(["train", name] for name in wanted)):
        attempt.output.say(f"trial: {' '.join(words)}")
        record = run_program(own, [*words, "-c", file], 1)
        if record is not None:
            return record
    variant = declared.variant(stage_config(typed, declared.stages[attempt.pod.stage]))
    ref = StageDir(typed.root, typed.run, attempt.pod.stage, variant).newest()
    faults = ["there is none"] if ref is None else verify(ref)
    if ref is None or faults or not ref.metadata.final:
        sentence = f"the checkpoint of the trial is not sound: {'; '.join(faults) or 'it is not final'}"
        return FailureRecord.of(StagelineError(sentence, remedy="see the log of this pod"))
    attempt.output.say(f"trial: {attempt.pod.stage} trained {ref.metadata.step} steps; its checkpoint is sound")
    return None


def trial_config(raw: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The config with everything inside the pod: its root, and one machine."""
    trainer = {**(raw.get("trainer") or {}), "nodes": 1, "processes": 1}
    plain = {key: value for key, value in raw.items() if key not in ("stages", "cluster")}
    return {**plain, "root": str(root), "run": "trial", "trainer": trainer}


def with_parents(family: FamilyConfig, config: RunConfig, name: str) -> list[str]:
    """A stage and what it needs before it, in order. config: the run's."""
    from stageline.stage import stage_config

    needed, wanted = {name}, list[str]()
    for stage in reversed(list(family.stages)):
        if stage.name in needed:
            wanted.insert(0, stage.name)
            optional = stage.optional_parents - set(family.needs(stage_config(config, stage), stage))
            needed |= {parent for role, parent in stage.parents.items() if role not in optional}
    family.stages[name]  # an unknown one is refused in words
    return wanted

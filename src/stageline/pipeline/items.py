"""The items of a run as jobs that are started one by one: preparation, each stage, the evaluation. Loads no torch.

Where the store can be reached the job names its data and parents by reference, as a pipeline's step does. Where it
cannot, the job stands for itself: its pod prepares the data and takes the parents that its run has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stageline.config import ClusterConfig, RunConfig, nearest
from stageline.contract import FamilyConfig
from stageline.errors import ConfigError, PlanError, StagelineError
from stageline.families import family_config, parse_config
from stageline.jobs.defaults import with_defaults
from stageline.jobs.job import EVALUATE_ITEM, PREPARE_ITEM, Job, job_name
from stageline.jobs.placement import check_on_cluster, place_root
from stageline.pipeline.item_job import Probe
from stageline.stage import stage_config, stage_fingerprint
from stageline.store import Store

if TYPE_CHECKING:
    from stageline.plan import Item

SHORT_SHUTDOWN_SECONDS = 5
"""For what has nothing to commit when it is stopped."""


@dataclass(frozen=True)
class Prospect:
    """A job that may be started. reference: of its result, where that is in the store: then nothing need run."""

    job: Job
    cluster: ClusterConfig
    probe: Probe
    reference: str = ""
    why: str = ""


def place_config(config: RunConfig, defaults: Mapping[str, Any]) -> RunConfig:
    """The config as pods get it: on top of its namespace's defaults, a relative root inside the claim.

    ConfigError with everything that keeps its stages from being jobs.
    """
    raw = with_defaults(plain_config(config), defaults)
    raw["root"] = place_root(raw) or raw.get("root", config.root)
    placed = parse_config(raw)
    check_on_cluster(placed)
    return placed


def plain_config(config: RunConfig) -> dict[str, Any]:
    """What a config states, as plain JSON data, its run and family written out."""
    raw: dict[str, Any] = json.loads(config.model_dump_json(exclude_unset=True, by_alias=True))
    return {**raw, "family": config.family, "run": config.run}


def item_names(config: RunConfig) -> tuple[str, ...]:
    """Everything of a run that can be a job, in order."""
    stages = family_config(config.family).selected(config)
    return (PREPARE_ITEM, *(stage.name for stage in stages), EVALUATE_ITEM)


def check_item(config: RunConfig, item: str) -> None:
    """ConfigError for an item that is none of this run's."""
    names = item_names(config)
    if item not in names:
        near = nearest(item, names)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"run {config.run!r} has no {item!r}{hint}", remedy=f"it has: {', '.join(names)}")


def free_job(config: RunConfig, item: str) -> tuple[Job, ClusterConfig]:
    """The job of an item that stands for itself, whatever lies in the store. Reads nothing but source files."""
    check_item(config, item)
    family = family_config(config.family)
    if item == PREPARE_ITEM:
        return _job(config, item, ("prepare",), _prepared_key(config, family)), config.cluster
    if item == EVALUATE_ITEM:
        return _job(config, item, ("evaluate", "--quiet"), ""), config.cluster
    stage = family.stages[item]
    own = stage_config(config, stage)
    job = _job(config, item, ("train", item), stage_fingerprint(own, stage, "", {}), own)
    return job, own.cluster


def _prepared_key(config: RunConfig, family: FamilyConfig) -> str:
    from stageline.work.data import hash_sources, prepared_fingerprint, run_splits

    try:
        splits = run_splits(config, family)
        return prepared_fingerprint(config, splits, hash_sources(splits))
    except StagelineError:  # source files that only pods see
        return ""


def _job(
    config: RunConfig, item: str, arguments: tuple[str, ...], fingerprint: str, own: RunConfig | None = None
) -> Job:
    """own: the config as the stage sees it; none where a single process does the work."""
    trainer = own.trainer if own else None
    return Job(
        name=job_name(config.run, item),
        arguments=arguments,
        config={**plain_config(config), "root": config.root},
        run=config.run,
        item=item,
        family=config.family,
        fingerprint=fingerprint,
        nodes=trainer.nodes if trainer else 1,
        processes=trainer.processes if trainer else 1,
        shutdown_timeout_seconds=trainer.shutdown_timeout_seconds if trainer else SHORT_SHUTDOWN_SECONDS,
    )


def resolved_job(config: RunConfig, item: str, root: Store) -> Prospect:
    """The job of an item with its inputs by reference, and what the store says of its result.

    PlanError for a stage that is blocked or whose inputs are not there yet.
    """
    from stageline.plan import make_plan
    from stageline.work.references import refuse_blocked

    check_item(config, item)
    planned = make_plan(config)[item]
    refuse_blocked(planned)
    if item == PREPARE_ITEM:
        return _resolved_preparation(config, root)
    data = _data_of(config, root)
    if item == EVALUATE_ITEM:
        return _resolved_evaluation(config, data, root)
    return _resolved_stage(config, planned, data, root)


def _data_of(config: RunConfig, root: Store) -> str:
    from stageline.data.prepared import write_set
    from stageline.work.data import forecast_prepared

    found, why = forecast_prepared(config, root)
    if found is None:
        raise DataMissingError(
            f"the data of run {config.run!r} are not prepared ({why})", remedy="stageline job submit prepare_data"
        )
    return str(write_set(root, found.inputs(found.splits)).reference)


class DataMissingError(PlanError):
    """The data of a run have to be prepared before anything else."""


def _resolved_preparation(config: RunConfig, root: Store) -> Prospect:
    from stageline.data.prepared import find_prepared
    from stageline.work.data import hash_sources, prepared_fingerprint, run_splits

    splits = run_splits(config, family_config(config.family))
    key = prepared_fingerprint(config, splits, hash_sources(splits))
    found = find_prepared(root, key)
    probe = Probe(lambda: find_prepared(root, key) is not None)
    reference = str(found.reference) if found else ""
    return Prospect(_job(config, PREPARE_ITEM, ("prepare",), key), config.cluster, probe, reference)


def _resolved_stage(config: RunConfig, planned: Item, data: str, root: Store) -> Prospect:
    from stageline.checkpoint.layout import StageDir
    from stageline.work.references import committed_step, decide, refuse_blocked

    item, roles = planned.name, dict(planned.parents)
    untrained = [role for role, reference in roles.items() if not reference]
    if untrained:
        why = "; ".join(reason for reason in planned.reasons if reason.startswith("parent "))
        raise PlanError(
            f"stage {item!r} cannot start yet: {why}", remedy="submit the stage before it first, or the whole pipeline"
        )
    raw = {**plain_config(config), "root": config.root}
    words = " ".join(f"{role}={reference}" for role, reference in roles.items())
    decision = decide(raw, item, data, words)
    refuse_blocked(decision.item)
    arguments: tuple[str, ...] = ("train", item, f"--data={data}")
    arguments += tuple(f"--parent={role}={decision.item.parents.get(role, '')}" for role in decision.roles)
    directory = StageDir(root, config.run, item)
    probe = Probe(
        lambda: decide(raw, item, data, words).ref is not None,
        lambda: committed_step(directory, decision.fingerprint),
    )
    job = _job(config, item, arguments, decision.fingerprint, decision.config)
    reference = str(decision.ref.reference) if decision.ref else ""
    return Prospect(job, decision.config.cluster, probe, reference, "; ".join(decision.item.reasons))


def _resolved_evaluation(config: RunConfig, data: str, root: Store) -> Prospect:
    from stageline.checkpoint.layout import resolve
    from stageline.data.prepared import read_prepared
    from stageline.plan import make_plan
    from stageline.work.data import evaluation_inputs
    from stageline.work.evaluations import evaluation_fingerprint, find_evaluation

    last = family_config(config.family).selected(config)[-1].name
    planned = make_plan(config)[last]
    if planned.action != "reuse":
        raise PlanError(
            f"there is nothing to evaluate yet: stage {last!r} is not trained with these settings "
            f"({'; '.join(planned.reasons)})",
            remedy=f"stageline job submit {last}",
        )
    ref = resolve(planned.reference)
    name = evaluation_fingerprint(
        config, ref.content, ref.metadata.facts, evaluation_inputs(config, read_prepared(data))
    )
    folder = root.child("runs", config.run)
    found = find_evaluation(folder, name)
    arguments = ("evaluate", "--quiet", f"--checkpoint={ref.reference}", f"--data={data}")
    probe = Probe(lambda: find_evaluation(folder, name) is not None)
    job = _job(config, EVALUATE_ITEM, arguments, name)
    return Prospect(job, config.cluster, probe, str(found.reference) if found else "")

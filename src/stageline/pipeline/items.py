"""The items of a run as jobs: preparation, each stage, the evaluation. Loads no torch.

Where the store can be reached the job names its data and parents by reference, as a pipeline's step does. Where it
cannot, the job stands for itself: its pod prepares the data and takes the parents that its run has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stageline.config import ClusterConfig, RunConfig, nearest
from stageline.errors import ConfigError, PlanError
from stageline.families import family_config, parse_config
from stageline.jobs.defaults import with_defaults
from stageline.jobs.job import EVALUATE_ITEM, PREPARE_ITEM, Job, job_name
from stageline.jobs.placement import check_on_cluster, place_root
from stageline.pipeline.item_job import StoredResult
from stageline.stage import stage_config, stage_fingerprint
from stageline.store import Store

if TYPE_CHECKING:
    from stageline.work.data import Hashes
    from stageline.work.given import Given
    from stageline.work.work import Work

SHORT_SHUTDOWN_SECONDS = 5
"""For what has nothing to commit when it is stopped."""


@dataclass(frozen=True)
class Prospect:
    """A job that may be started. reference: of its result, where that is in the store: then nothing need run."""

    job: Job
    cluster: ClusterConfig
    result: StoredResult
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
    """What a config states, as plain JSON data, its run, family and root written out."""
    raw: dict[str, Any] = json.loads(config.model_dump_json(exclude_unset=True, by_alias=True))
    return {**raw, "family": config.family, "run": config.run, "root": config.root}


def item_names(config: RunConfig) -> tuple[str, ...]:
    """Everything of a run that can be a job, in order."""
    from stageline.work.evaluations import asked_checkpoints

    family = family_config(config.family)
    has_evaluation = bool(asked_checkpoints(config)) or family.evaluated(config) is not None
    stages = (stage.name for stage in family.selected(config))
    return (PREPARE_ITEM, *stages, *((EVALUATE_ITEM,) if has_evaluation else ()))


def check_item(config: RunConfig, item: str) -> None:
    """ConfigError for an item that is none of this run's."""
    names = item_names(config)
    if item not in names:
        near = nearest(item, names)
        hint = f"; did you mean {near!r}?" if near else ""
        if item == EVALUATE_ITEM:
            stages = family_config(config.family).selected(config)
            hint = "".join(f"; stage {stage.name!r}: {stage.not_evaluated}" for stage in stages)
        raise ConfigError(f"run {config.run!r} has no {item!r}{hint}", remedy=f"it has: {', '.join(names)}")


def work_job(config: RunConfig, work: Work) -> Job:
    """The job of decided work, its inputs by reference where they are known. config: the run's."""
    is_stage = work.kind == "stage"
    return make_job(config, work.item, work.arguments(), work.fingerprint, work.config if is_stage else None)


def stored_result(config: RunConfig, work: Work, given: Given | None) -> StoredResult:
    """What of a job's result lies in the store. given: as the work was decided from."""
    from stageline.work.answers import read_answer
    from stageline.work.decision import decide
    from stageline.work.work import StageWork

    before = read_answer(work.root, config) if work.kind == PREPARE_ITEM and work.data.unseen else None

    def finished() -> bool:
        if work.kind == PREPARE_ITEM and work.data.unseen:
            answer = read_answer(work.root, config)
            return answer is not None and answer != before
        return bool(decide(config, work.item, work.root, given).result)

    return StoredResult(finished, work.committed_step) if isinstance(work, StageWork) else StoredResult(finished)


def make_job(
    config: RunConfig, item: str, arguments: tuple[str, ...], fingerprint: str, own: RunConfig | None = None
) -> Job:
    """A job of a run.

    config: the run's.  arguments: verb and options.  fingerprint: what its result depends on.
    own: the config as the stage sees it; None where a single process does the work.
    """
    trainer = own.trainer if own else None
    variant = family_config(config.family).variant(own) if own else ""
    return Job(
        name=job_name((own or config).cluster.name_prefix + config.run, item, variant),
        arguments=arguments,
        config=plain_config(config),
        run=config.run,
        item=item,
        family=config.family,
        variant=variant,
        fingerprint=fingerprint,
        nodes=trainer.nodes if trainer else 1,
        processes=trainer.processes if trainer else 1,
        shutdown_timeout_seconds=trainer.shutdown_timeout_seconds if trainer else SHORT_SHUTDOWN_SECONDS,
    )


def free_job(config: RunConfig, item: str) -> tuple[Job, ClusterConfig]:
    """The job of an item that stands for itself, whatever lies in the store. Reads nothing but source files."""
    check_item(config, item)
    if item == PREPARE_ITEM:
        return make_job(config, item, ("prepare",), _prepared_key(config)), config.cluster
    if item == EVALUATE_ITEM:
        return make_job(config, item, ("evaluate", "--quiet"), ""), config.cluster
    stage = family_config(config.family).stages[item]
    own = stage_config(config, stage)
    return make_job(config, item, ("train", item), stage_fingerprint(own, stage, "", {}), own), own.cluster


def _prepared_key(config: RunConfig) -> str:
    from stageline.work.data import hash_seen, prepared_fingerprint, run_splits

    splits = run_splits(config, family_config(config.family))
    return prepared_fingerprint(config, splits, hash_seen(splits))


class DataMissingError(PlanError):
    """The data of a run have to be prepared before anything else."""


def resolved_job(config: RunConfig, item: str, root: Store, data: str = "") -> Prospect:
    """The job of an item with its inputs by reference, and what the store says of its result.

    data: reference of the prepared data, where a job has just told it; "" finds them.
    PlanError for an item that is blocked or whose inputs are not there yet.
    """
    from stageline.data.prepared import write_set
    from stageline.work.decision import decide
    from stageline.work.given import Given, given_by
    from stageline.work.work import StageWork, refuse_blocked

    check_item(config, item)
    given = Given(hashes=_source_hashes(config)) if item == PREPARE_ITEM else Given(data) if data else None
    work = decide(config, item, root, given)
    refuse_blocked(work)
    prepared = work.data.prepared
    if item != PREPARE_ITEM:
        if prepared is None:
            raise DataMissingError(
                f"the data of run {config.run!r} are not prepared ({work.data.reason})",
                remedy="stageline job submit prepare_data",
            )
        write_set(root, prepared.inputs(prepared.splits))  # what the job is told must be there
    if not work.fingerprint and item != PREPARE_ITEM:
        if isinstance(work, StageWork):
            raise PlanError(
                f"stage {item!r} cannot start yet: {'; '.join(work.waiting)}",
                remedy="submit the stage before it first, or the whole pipeline",
            )
        family = family_config(config.family)
        last = (family.evaluated(config) or family.selected(config)[-1]).name
        raise PlanError(
            f"there is nothing to evaluate yet: {'; '.join(work.reasons)}", remedy=f"stageline job submit {last}"
        )
    given = given_by(work.arguments()) or given
    why = "; ".join(work.reasons) if isinstance(work, StageWork) else ""
    result = stored_result(config, work, given)
    return Prospect(work_job(config, work), work.config.cluster, result, work.result, why)


def _source_hashes(config: RunConfig) -> Hashes:
    from stageline.work.data import hash_seen, run_splits

    return hash_seen(run_splits(config, family_config(config.family)))

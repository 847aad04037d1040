"""Whether a pod's work is committed already: a worker that was started alone after the end must not wait for peers."""

from __future__ import annotations

from stageline.config import RunConfig, TrainerConfig
from stageline.errors import ConfigError, PlanError
from stageline.jobs.environment import CONFIG_VARIABLE
from stageline.pod.settings import Pod
from stageline.store import open_store


def find_finished(pod: Pod) -> str:
    """The reference of what this pod would make, "" if it is not there yet.

    Preparation is not asked here: it looks for itself, and would read every source file twice.
    PlanError where the job was made for something else than its config and arguments say.
    """
    if not pod.config or pod.verb not in ("train", "evaluate"):
        return ""
    from stageline.families import parse_config

    config = parse_config(pod.config, where=CONFIG_VARIABLE)
    return _find_checkpoint(pod, config) if pod.verb == "train" else _find_evaluation(pod, config)


def check_ranks(pod: Pod) -> TrainerConfig | None:
    """The stage's settings; ConfigError unless torchrun would start as many ranks as they ask for."""
    if pod.verb != "train" or not pod.config:
        return None
    from stageline.families import family_config, parse_config
    from stageline.stage import stage_config

    config = parse_config(pod.config, where=CONFIG_VARIABLE)
    wanted = stage_config(config, family_config(config.family).stages[pod.stage]).trainer
    if wanted.world_size != pod.world_size:
        raise ConfigError(
            f"the job starts {pod.nodes} x {pod.processes} ranks (PET_NNODES x PET_NPROC_PER_NODE), its config asks "
            f"for {wanted.nodes} x {wanted.processes} (trainer.nodes x trainer.processes)",
            remedy="the job was changed by hand: delete it and submit it again",
        )
    return wanted


def _find_checkpoint(pod: Pod, config: RunConfig) -> str:
    from stageline.plan import make_plan
    from stageline.work.references import decide

    given = pod.options("data")
    if not given:  # a job that finds data and parents itself was rendered before anybody knew them
        item = make_plan(config)[pod.stage]
        return item.reference if item.action == "reuse" else ""
    decision = decide(pod.config, pod.stage, given[-1], " ".join(pod.options("parent")))
    _compare(pod, decision.fingerprint)
    return "" if decision.ref is None else str(decision.ref.reference)


def _find_evaluation(pod: Pod, config: RunConfig) -> str:
    from stageline.checkpoint.layout import resolve
    from stageline.data.prepared import read_prepared
    from stageline.work.data import evaluation_inputs
    from stageline.work.evaluations import evaluation_fingerprint, find_evaluation

    checkpoint, data = pod.options("checkpoint"), pod.options("data")
    if not checkpoint or not data:
        return ""
    ref = resolve(checkpoint[-1])
    inputs = evaluation_inputs(config, read_prepared(data[-1]))
    name = evaluation_fingerprint(config, ref.content, ref.metadata.facts, inputs)
    _compare(pod, name)
    found = find_evaluation(open_store(config.root).child("runs", config.run), name)
    return "" if found is None else str(found.reference)


def _compare(pod: Pod, fingerprint: str) -> None:
    if pod.fingerprint and fingerprint and pod.fingerprint != fingerprint:
        raise PlanError(
            f"job {pod.job!r} was made for {pod.item} with fingerprint {pod.fingerprint[:12]}…, and its config and "
            f"arguments in this pod are those of {fingerprint[:12]}…",
            remedy="the job was edited while it ran, or launcher and image are of different versions: delete the job "
            "and submit it again",
            code="E_JOB_EDITED",
        )

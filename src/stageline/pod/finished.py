"""Whether a pod's work is committed already: a worker that was started alone after the end must not wait for peers."""

from __future__ import annotations

from stageline.config import RunConfig, TrainerConfig
from stageline.errors import ConfigError, PlanError
from stageline.jobs.environment import CONFIG_VARIABLE
from stageline.pod.settings import Pod


def find_finished(pod: Pod, *, before: bool = False) -> str:
    """The reference of what this pod would make, "" if it is not there yet.

    before: asked before anything ran. A job that stands for itself then decides by itself, after its own preparation.
    Preparation is never asked here: it looks for itself, and would read every source file twice.
    PlanError where the job was made for something else than its config and arguments say.
    """
    if not pod.config or pod.verb not in ("train", "evaluate"):
        return ""
    from stageline.families import parse_config
    from stageline.work.decision import decide_evaluation, decide_stage
    from stageline.work.given import given_by
    from stageline.work.work import Work, refuse_blocked

    given = given_by(pod.arguments)
    if given is None and before:
        return ""
    config = parse_config(pod.config, where=CONFIG_VARIABLE)
    work: Work = (
        decide_stage(config, pod.stage, given=given) if pod.verb == "train" else decide_evaluation(config, given=given)
    )
    if given is not None and pod.verb == "train":
        _refuse_another_run(pod, config)
    refuse_blocked(work)
    if given is not None:
        _compare(pod, work.fingerprint)
    return work.result


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


def _refuse_another_run(pod: Pod, config: RunConfig) -> None:
    """Whoever made the job claimed its run first: a config of another identity came later."""
    from stageline.checkpoint.identity import compare_run, read_run

    record = read_run(config.root, config.run) if pod.fingerprint else None
    lines = [] if record is None else compare_run(record, config)
    if lines:
        found = f"job {pod.job!r} was made for the run {config.run!r}, and its config in this pod is another's"
        raise _edited(f"{found}: {'; '.join(lines)}")


def _compare(pod: Pod, fingerprint: str) -> None:
    if pod.fingerprint and fingerprint and pod.fingerprint != fingerprint:
        raise _edited(
            f"job {pod.job!r} was made for {pod.item} with fingerprint {pod.fingerprint[:12]}…, and its config and "
            f"arguments in this pod are those of {fingerprint[:12]}…"
        )


def _edited(found: str) -> PlanError:
    return PlanError(
        found,
        remedy="the job was edited while it ran, or launcher and image are of different versions: delete the job "
        "and submit it again",
        code="E_JOB_EDITED",
    )

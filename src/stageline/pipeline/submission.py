"""A run on a Kubeflow Pipelines backend: what is submitted, followed to its end, and what that end means.

`kfp run create -w` ends in 0 whatever became of the run. Here the exit code is the failed step's own, read from the
record it left in the store; where the store cannot be reached from this machine, it is 1.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stageline.checkpoint.usercode import name_code
from stageline.config import ClusterConfig, RunConfig
from stageline.errors import ClusterUnavailableError, InterruptedRunError, StagelineError, StepFailedError
from stageline.families import parse_config
from stageline.jobs.defaults import KEY, parse_defaults, with_defaults
from stageline.jobs.placement import check_on_cluster, place_root
from stageline.pipeline.backend import Backend, RunState
from stageline.pipeline.compiled import compiled_pipeline, task_names
from stageline.plan import Plan, make_plan
from stageline.signals import CaughtSignals
from stageline.store import Store, open_store
from stageline.store.settings import apply_storage
from stageline.telemetry import FailureRecord, read_events, read_failure
from stageline.work.branches import branch_config

POLL_SECONDS = 2.0
PATIENCE_SECONDS = 300.0
"""How long a backend that answered before may be silent; the run itself goes on meanwhile."""
SERVICE_ACCOUNT = "stageline-launcher"
"""The chart's account for the steps of a pipeline."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Submission:
    """What a backend is given. arguments: parameters of the compiled pipeline."""

    config: RunConfig
    pipeline: Path
    arguments: Mapping[str, Any]


def namespace_map(config: RunConfig, say: Say) -> dict[str, str]:
    """The chart's ConfigMap in a config's namespace, asked of the cluster; empty where that cannot be asked."""
    from stageline.kube.client import Api
    from stageline.kube.keys import CONFIG_MAPS
    from stageline.kube.refusals import AbsentError

    try:
        found = Api.connect(config.cluster.namespace, config.cluster.context).get(CONFIG_MAPS, config.cluster.defaults)
        return dict(found.get("data") or {})
    except AbsentError:
        return {}
    except StagelineError as error:
        say(f"no defaults of the namespace: {error.message}")
        return {}


def namespace_defaults(config: RunConfig, say: Say) -> dict[str, Any]:
    """What a config need not say in its namespace."""
    return parse_defaults(namespace_map(config, say).get(KEY, ""), f"ConfigMap {config.cluster.defaults!r}")


def make_submission(
    config: RunConfig, launcher_image: str = "", defaults: Mapping[str, Any] | None = None, branch: str = ""
) -> Submission:
    """The pipeline of a config and its parameters; ConfigError for what keeps its stages from being jobs.

    defaults: of the namespace, from which the config starts.  branch: of the family, "" for none.
    """
    plain = with_defaults(config.model_dump(mode="json", exclude_unset=True, by_alias=True), defaults or {})
    plain |= {"family": config.family, "run": config.run, "root": plain.get("root", config.root)}
    plain["root"] = place_root(plain) or plain["root"]
    placed = name_code(parse_config(plain))
    root = placed.root
    check_on_cluster(placed)
    if branch:
        check_on_cluster(branch_config(placed, branch, {}))
    with_claim = "://" not in root
    arguments: dict[str, Any] = {"config": placed.model_dump_json(exclude_unset=True, by_alias=True)}
    storage = placed.cluster.storage
    if with_claim:
        arguments["claim"] = storage.claim
    elif storage.s3 is not None:
        own = {"s3_secret": storage.s3.secret, "s3_ca": storage.s3.ca_config_map}
        arguments |= {name: value for name, value in own.items() if value}
    if placed.cluster.defaults != ClusterConfig().defaults:
        arguments["defaults"] = placed.cluster.defaults
    if launcher_image:
        arguments["launcher_image"] = launcher_image
    pipeline = compiled_pipeline(config.family, with_claim=with_claim, branch=branch)
    return Submission(placed, pipeline, arguments)


def reach_store(config: RunConfig) -> Store:
    """The root of a run as this machine sees it; StagelineError where it does not."""
    s3 = config.cluster.storage.s3
    apply_storage(s3.model_dump() if s3 else None)
    root = open_store(config.root)
    if "://" not in config.root and not Path(config.root).is_dir():
        raise StagelineError(f"{config.root!r} is a claim's folder and not mounted on this machine")
    root.exists(f"runs/{config.run}/run.json")
    return root


def plan_from_here(config: RunConfig) -> Plan:
    """The plan against the store; StagelineError where this machine does not reach it."""
    reach_store(config)
    return make_plan(config)


@dataclass
class SubmittedRun:
    """A run followed to its end. Ctrl-C once asks the backend to terminate it; again, this command leaves it."""

    backend: Backend
    run_id: str
    submission: Submission
    say: Say
    poll_seconds: float = POLL_SECONDS
    stop_requests: int = 0
    _told: dict[str, str] = field(default_factory=dict)
    _titles: Mapping[str, str] = field(default_factory=dict)
    _terminated: bool = False
    _num_events: int = 0
    _old_failure: FailureRecord | None = None
    _wake: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Note what an earlier run of this name left: it is not this one's. No clocks, which may differ."""
        self._titles = task_names(self.submission.pipeline)
        self._num_events = len(self._events())
        with suppress(StagelineError):
            self._old_failure = read_failure(self._run())

    def follow(self) -> StagelineError | None:
        """Tell every change of a step until the run ends; returns its error, None for a run that succeeded."""
        with CaughtSignals(self._stop):
            silent_since = 0.0
            asked = False
            while True:
                if self.stop_requests > 1:
                    return InterruptedRunError(
                        f"left KFP run {self.run_id} to itself", remedy="it ends or goes on by itself"
                    )
                try:
                    if self.stop_requests and not asked:
                        self.say(
                            f"asking {self.backend.endpoint} to terminate run {self.run_id}; Ctrl-C again leaves it"
                        )
                        self.backend.terminate(self.run_id)
                        asked = True
                    state = self.backend.state(self.run_id)
                    silent_since = 0.0
                except ClusterUnavailableError as error:
                    silent_since = silent_since or time.monotonic()
                    if time.monotonic() - silent_since > PATIENCE_SECONDS:
                        raise
                    self.say(f"{error.message}; the run goes on, asking again")
                else:
                    self._tell(state)
                    if state.ended:
                        return self._error(state)
                self._wake.wait(self.poll_seconds)
                self._wake.clear()

    def _tell(self, state: RunState) -> None:
        """What changed since the last look: the backend's states, and what the steps themselves say in the store."""
        if state.state == "CANCELING" and not self._terminated:
            self._terminated = True
            self.say("the run is being terminated")
        states = {task.name: task.state for task in state.tasks}
        for name, title in self._titles.items():
            if name in states and self._told.get(name) != states[name]:
                self._told[name] = states[name]
                self.say(f"{title}: {states[name].lower()}")
        for event in self._events()[self._num_events :]:
            self._num_events += 1
            self.say(f"  {event['item']}: {event['state']}: {event['text']}")

    def _events(self) -> list[dict[str, Any]]:
        try:
            events = read_events(self._run())
        except StagelineError:  # not reached from here, which was said before
            return []
        return [event for event in events if event.get("event") == "step"]

    def _run(self) -> Store:
        return reach_store(self.submission.config).child("runs", self.submission.config.run)

    def _error(self, state: RunState) -> StagelineError | None:
        if state.state in ("SUCCEEDED", "SKIPPED"):
            return None
        if self._terminated or self.stop_requests or state.state == "CANCELED":
            return InterruptedRunError(
                f"KFP run {self.run_id} was terminated; what was committed is kept",
                remedy="submit the same config again to continue",
            )
        bad = [task for task in state.tasks if task.state in ("FAILED", "ERROR")]
        failed = next((task for task in bad if task.name in self._titles), None)
        remedy = "look at the step's pod: kubectl describe, kubectl logs"
        try:
            record = read_failure(self._run())
        except StagelineError as unreachable:
            remedy = f"its record lies in the store, which this machine does not reach: {unreachable.message}"
        else:
            if record is not None and record != self._old_failure:
                return record.error()
        where = f"step {self._titles[failed.name]!r} failed" if failed else "the run failed"
        words = (failed.error if failed else "") or state.error or "KFP does not say why"
        return StepFailedError(f"{where}: {words}", exit_code=1, remedy=remedy)

    def _stop(self, number: int) -> None:  # noqa: ARG002
        self.stop_requests += 1
        self._wake.set()

"""What a step in a pod writes down about itself in the run: there no driver sits beside the pipeline to do it.

The run's name is claimed and its plan made by the first step; every step adds what happened to the run's events, and
leaves its failure record where `stageline runs show` and the report look for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stageline.build import image_reference
from stageline.checkpoint.identity import claim_run
from stageline.config import RunConfig
from stageline.errors import InterruptedRunError, StagelineError
from stageline.families import family_config
from stageline.plan import PLAN, blocked_error, make_plan
from stageline.store import Store, open_store
from stageline.telemetry import EventLog, clear_failures, redact, write_failure
from stageline.work.work import stage_places


class Journal:
    """A step's entries in the record of its run."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._root = open_store(config.root)

    @property
    def run(self) -> Store:
        return self._root.child("runs", self._config.run)

    def open_run(self, kfp_run: str) -> None:
        """Claim the run's name and write the plan; PlanError where the name is another run's or the plan is blocked."""
        stages = stage_places(self._config, family_config(self._config.family))
        command = f"KFP run {kfp_run}" if kfp_run else "a pipeline's step"
        claim_run(self._root, self._config, command, stages=stages, image=image_reference())
        plan = make_plan(self._config)
        if plan.blocked:
            raise blocked_error(plan)
        self.run.put(PLAN, (json.dumps(plan.to_json(), indent=1, ensure_ascii=False) + "\n").encode())

    def begin(self) -> None:
        """Remove the failure of an attempt before this one: KFP retries a run from its failed step on."""
        clear_failures(self.run)

    def tell(self, event: Mapping[str, Any]) -> None:
        """Add what happened to the run's events."""
        log = EventLog(self.run)
        log.emit("step", **{key: event[key] for key in ("item", "state", "text", "seconds")})
        log.close()

    def fail(self, item: str, error: BaseException, log_tail: Sequence[str]) -> None:
        """Leave the failure record; a store that refuses must not hide the error itself."""
        try:
            write_failure(self.run, error, log_tail=[str(redact(line)) for line in log_tail])
            state = "stopped" if isinstance(error, InterruptedRunError) else "failed"
            self.tell({"item": item, "state": state, "text": str(error), "seconds": 0.0})
        except StagelineError as second:
            error.add_note(f"the failure record could not be written: {second.message}")

"""How far a run got, in words: of each stage and of the whole, from records, events and checkpoints alone.

No clock is read, so that the same files always give the same report: a stage that is neither finished nor failed is
"not finished", and the reader is told when it was last heard of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from stageline.telemetry.failures import TRY_AGAIN, FailureRecord
from stageline.verbs.report.record import RunRecord, StageRecord
from stageline.verbs.report.timeline import Session

Json = Mapping[str, Any]
BEGINNINGS = frozenset({"started", "resumed", "seeded"})
"""Events that open a session where none is open."""
ENDINGS = {"finished": ("good", "finished"), "interrupted": ("warn", "interrupted"), "failed": ("bad", "failed")}
STEP_STATES = {"done": "good", "stopped": "warn", "failed": "bad"}
OPEN_END = "no end was recorded"


@dataclass(frozen=True)
class Status:
    """state: good | warn | bad | idle, for colour.  word: one or two words.  sentence: what it means."""

    state: str
    word: str
    sentence: str


def stage_status(stage: StageRecord) -> Status:
    """Of one stage."""
    done = stage.last.metadata.step if stage.last else 0
    planned = planned_steps(stage)
    of = f"step {done} of {planned}" if planned else f"step {done}"
    stopped = Status("warn", "interrupted", f"was stopped at {of} after a checkpoint; start it again to continue")
    if stage.is_final:
        return Status("good", "finished", f"finished with {of}")
    if stage.failure is not None:
        if stage.failure.is_interruption:
            return stopped
        reached = max((e["step"] for e in stage.events if isinstance(e.get("step"), int)), default=0)
        after = f" after step {reached}" if reached else ""
        place = f"; its last checkpoint stands at {of}" if stage.last else ", before its first checkpoint"
        left = f"failed{after}{place}"
        return Status("bad", "failed", left)
    if not stage.events and stage.last is None:
        return Status("idle", "not started", "has not started")
    newest = stage.events[-1] if stage.events else {}
    if newest.get("event") == "interrupted":
        return stopped
    place = f"its last checkpoint stands at {of}" if stage.last else "it has no checkpoint yet"
    heard = when(newest.get("time"))
    return Status("warn", "not finished", f"is not finished: {place}, last heard of {heard}")


def run_status(record: RunRecord) -> Status:
    """Of the whole run."""
    stages = {stage.name: stage_status(stage) for stage in record.stages}
    if record.failure is not None and not record.failure.is_interruption:
        return Status("bad", "failed", "A step of this run failed.")
    for state, word in (("bad", "failed"), ("warn", "interrupted"), ("warn", "not finished")):
        named = [name for name, status in stages.items() if (status.state, status.word) == (state, word)]
        if named:
            return Status(state, word, " ".join(f"Stage {name} {stages[name].sentence}." for name in named))
    if record.failure is not None:
        return Status("warn", "interrupted", "This run was stopped; start it again to continue.")
    begun = {name.split("/")[0] for name, status in stages.items() if status.state != "idle"}
    taken = taken_stages(record)
    waiting = [name for name in declared_stages(record) if name not in begun and name not in taken]
    if waiting and not begun and not taken:
        return Status("idle", "not started", "No stage of this run has started.")
    if waiting:
        return Status("warn", "not finished", f"Still to come: {', '.join(waiting)}.")
    if not record.stages:
        return Status("idle", "empty", "Nothing has run yet.")
    if not record.evaluations and (why := not_evaluated(record)):
        return Status("good", "finished", f"Every stage is finished; nothing is evaluated: {why}.")
    if not record.evaluations:
        return Status("good", "trained", "Every stage is finished; nothing has been evaluated yet.")
    return Status("good", "finished", "Every stage is finished and evaluated.")


def not_evaluated(record: RunRecord) -> str:
    """Why the run has nothing to evaluate, as its plan says; "" where it has."""
    items = record.plan.get("items")
    listed = [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
    found = [item.get("reasons") for item in listed if item.get("action") == "not evaluated"]
    return "; ".join(str(reason) for reasons in found if isinstance(reasons, list) for reason in reasons)


def declared_stages(record: RunRecord) -> list[str]:
    """The stages the run is made of, as far as it says, without those its plan left out."""
    declared = record.run.get("stages")
    if not isinstance(declared, Mapping | list):
        return [stage.name for stage in record.stages]
    items = record.plan.get("items")
    listed = [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
    left_out = {item.get("name") for item in listed if item.get("action") == "not selected"}
    return [str(name) for name in declared if name not in left_out]


def taken_stages(record: RunRecord) -> dict[str, str]:
    """Stage -> the checkpoint of another run that stands for it, of those that this run has nothing of.

    As the plan says, and the stages that were trained from them.
    """
    own = {stage.name.split("/")[0] for stage in record.stages}
    items = record.plan.get("items")
    listed = [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
    found = {
        str(item.get("name")): str(item.get("reference")).partition("@sha256:")[0]
        for item in listed
        if item.get("kind") == "stage" and str(item.get("action")).startswith("reuse") and item.get("reference")
    }
    for stage in record.stages:
        for ref in stage.committed:
            found |= {parent.stage: parent.uri for parent in ref.metadata.parents.values()}
    root = record.uri.rpartition("/runs/")[0]
    return {name: uri.removeprefix(f"{root}/") for name, uri in found.items() if name not in own}


def asks_again(event: Json) -> bool:
    """Whether an event's exit code asks to be tried again."""
    code = event.get("exit_code")
    return isinstance(code, int) and code >= TRY_AGAIN


def planned_steps(stage: StageRecord) -> int | None:
    """Optimizer steps the stage is to take, as its newest checkpoint or event says."""
    if stage.last:
        return stage.last.metadata.steps
    for event in reversed(stage.events):
        if isinstance(event.get("steps"), int):
            return int(event["steps"])
    return None


def when(time: Any) -> str:
    """Seconds since 1970 as a date in UTC."""
    if isinstance(time, bool) or not isinstance(time, int | float):
        return "at an unknown time"
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def sessions(record: RunRecord) -> list[Session]:
    """Every stretch of work on every part, in the order of their beginnings."""
    found = [s for stage in record.stages for s in stage_sessions(stage)]
    found += step_sessions(record, found)
    return sorted(found, key=lambda s: (s.start, s.part))


def step_sessions(record: RunRecord, own: Sequence[Session]) -> list[Session]:
    """Stretches of the pipeline's steps, from events of the run itself that tell how long each took.

    own: the stages' sessions. A step that surrounds some of its stage is their frame: it also starts the process and
    looks at the result. One that ended before its stage began stands for itself.
    """
    found = []
    for event in record.events:
        item, state, end, seconds = (event.get(key) for key in ("item", "state", "time", "seconds"))
        if state not in STEP_STATES or not isinstance(end, int | float) or not isinstance(seconds, int | float):
            continue
        start, end = float(end - seconds), float(end)
        if any(s.part.split("/")[0] == item and start <= s.start <= end for s in own):
            found.append(Session(str(item), start, end, "idle", "whole step, with starting up", is_frame=True))
        else:
            found.append(Session(str(item), start, end, STEP_STATES[state], str(state)))
    return found


def stage_sessions(stage: StageRecord) -> Iterator[Session]:
    """Stretches of one stage: from its beginning to the event that ends it, or to the last one there is."""
    group: list[Json] = []
    for event in stage.events:
        if not isinstance(event.get("time"), int | float):
            continue
        if not group and event.get("event") == "failed" and asks_again(event):
            continue  # the record of an interruption that has just been told
        if group and event.get("event") in BEGINNINGS and group[-1].get("event") not in BEGINNINGS:
            yield session(stage, group)
            group = []
        group.append(event)
        if event.get("event") in ENDINGS:
            yield session(stage, group)
            group = []
    if group:
        yield ended_by_failure(session(stage, group), stage.failure)


def session(stage: StageRecord, events: Sequence[Json]) -> Session:
    """One stretch from its events, in the order of the file."""
    kind = "interrupted" if asks_again(events[-1]) else str(events[-1].get("event"))
    state, word = ENDINGS.get(kind, ("idle", OPEN_END))
    steps = [e["step"] for e in events if isinstance(e.get("step"), int)]
    text = f"{word} at step {steps[-1]}" if steps else word
    start, end = float(events[0]["time"]), float(events[-1]["time"])
    return Session(stage.name, start, max(start, end), state, text)


def ended_by_failure(last: Session, failure: FailureRecord | None) -> Session:
    """The last stretch of a stage that left a failure record instead of an end."""
    if failure is None:
        return last
    end = max(last.end, failure.time)
    state, word = ("warn", "interrupted") if failure.is_interruption else ("bad", "failed")
    return replace(last, end=end, state=state, text=last.text.replace(OPEN_END, word))

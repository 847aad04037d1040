"""The bodies of the components. What passes between them is a reference, `<uri>@sha256:<digest>`, percent-encoded,
or nothing.

Each works out the run's config from the pipeline's parameters, looks for a receipt (standard library and store only),
then decides from config and checkpoints, and only then starts a job that trains, evaluates or prepares: a process
beside it, or a PyTorchJob. What it answers is the same in both places.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stageline.errors import PlanError, StepFailedError
from stageline.jobs.placement import check_mounted
from stageline.jobs.step_lines import DRIVER_VARIABLE
from stageline.pipeline.artifacts import Artifact, MetricsArtifact, log_metrics, show_answer
from stageline.pipeline.attempts import Attempts
from stageline.pipeline.body import Body, step_body
from stageline.pipeline.item_job import run_verb
from stageline.pipeline.receipts import Receipt, below, question, read_receipt, rest_on, write_receipt
from stageline.pipeline.request import Request, read_request
from stageline.stage import FROM_SCRATCH
from stageline.store import Store, open_store
from stageline.store.references import decode, encode, split_pairs
from stageline.store.settings import apply_storage

if TYPE_CHECKING:
    from stageline.work.given import Given
    from stageline.work.work import Work


@dataclass(frozen=True)
class Step:
    """One step at work on one request. asked: what its answer depends on, as a hash."""

    body: Body
    request: Request
    root: Store
    asked: str

    @property
    def run_name(self) -> str:
        return self.request.config.run

    def run(self, work: Work, given: Given | None) -> None:
        """Run the job of decided work to its end. given: what its result is looked for with."""
        from stageline.pipeline.items import stored_result, work_job

        cluster = work.config.cluster if self.request.launcher == "pytorchjob" else None
        job = work_job(self.request.config, work)
        run_verb(self.body, job, stored_result(self.request.config, work, given), cluster)

    def leave(self, answer: dict[str, Any], rest: Receipt | None) -> None:
        """Leave a receipt for the next run; what lies outside the root is decided anew each time."""
        if rest is not None:
            write_receipt(self.root, self.run_name, self.body.item, self.asked, Receipt(answer, rest.hashes))

    def take_receipt(self) -> dict[str, Any] | None:
        """The answer given before to the same question, said aloud."""
        receipt = read_receipt(self.root, self.run_name, self.body.item, self.asked)
        if receipt is None:
            return None
        answer = dict(receipt.answer)
        reference = str(answer["reference"])
        text = _short(reference)
        self.body.say("reused", text, reference=reference)
        return answer


def open_step(body: Body, parameters: Mapping[str, Any], *references: str) -> Step:
    """Read the request of a step and reach its store. parameters: those of the pipeline.

    Without a driver beside the pipeline (on a cluster) the step writes down itself what happens to the run.
    """
    request = read_request(parameters)
    if request.launcher == "pytorchjob":
        check_mounted(request.config)
    s3 = request.config.cluster.storage.s3
    apply_storage(s3.model_dump() if s3 else None)
    root = open_store(request.config.root)
    if root.in_process:
        raise PlanError(
            f"{root.uri} lives inside one process, and every step of a pipeline is its own",
            remedy="set root to a folder, s3:// or gs://",
        )
    asked = question(body.item, request.text, *references)
    attempts = Attempts.of_this_pod(root, request.config.run, body.item, asked, request.kfp_run)
    attempts.begin()
    body.attempts = attempts
    followed = bool(os.environ.get(DRIVER_VARIABLE))
    if not followed or (body.branch and body.name == "prepare_data"):  # the driver opens the main run alone
        from stageline.pipeline.journal import Journal

        journal = Journal(request.config)
        if body.name == "prepare_data":
            journal.open_run(request.kfp_run)
        if not followed:
            body.journal = journal
            journal.begin()
    return Step(body, request, root, asked)


def prepare_data(dataset: Artifact, **parameters: Any) -> tuple[str]:
    """Prepare the data of a config or reuse them; returns their reference. parameters: the pipeline's own."""
    with step_body("prepare_data", str(parameters.get("branch", ""))) as body:
        step = open_step(body, parameters)
        answer = step.take_receipt() or _prepare(step)
        show_answer(dataset, answer)
        return (encode(str(answer["reference"])),)


def _prepare(step: Step) -> dict[str, Any]:
    from stageline.data.prepared import refuse_incomplete, write_set
    from stageline.data.quarantine import list_set_aside
    from stageline.data.told import note_told
    from stageline.families import family_config
    from stageline.work.answers import read_answer
    from stageline.work.data import hash_seen, run_splits, unseen_sources
    from stageline.work.decision import decide_data
    from stageline.work.externals import run_externals
    from stageline.work.given import Given
    from stageline.work.work import refuse_blocked

    body, root, typed = step.body, step.root, step.request.config
    splits = run_splits(typed, family_config(typed.family))
    sources, unseen = hash_seen(splits), unseen_sources(splits)
    given = Given(hashes=sources)
    work = decide_data(typed, root, given)
    refuse_blocked(work)
    if work.prepared is not None:
        refuse_incomplete(write_set(root, work.prepared.inputs(work.prepared.splits)))
        run = root.child("runs", typed.run)
        for line in list_set_aside(run, {n: split.set_aside for n, split in work.prepared.splits.items()}):
            body.line(line)
        for line in note_told(run, work.prepared.facts["splits"]):
            body.line(line)
        body.say("reused", _short(work.reference), reference=work.reference)
    else:
        body.say("running", work.data.unseen or "preparing data")
        step.run(work, given)
        answer_of_job = read_answer(root, typed) if work.data.unseen else None
        work = decide_data(typed, root, Given(answer_of_job.reference) if answer_of_job else given)
        if work.prepared is None:
            raise PlanError("the source files changed while the data were prepared", remedy="run again")
        if answer_of_job is not None and answer_of_job.reused:
            body.say("reused", _short(work.reference), reference=work.reference)
        else:
            made = work.prepared
            body.say("done", f"{made.num_files} files, {made.num_bytes} bytes, {_short(work.reference)}")
    found = work.prepared
    answer = {
        "reference": work.reference,
        "metadata": {
            "num_files": found.num_files,
            "num_bytes": found.num_bytes,
            "facts": json.dumps(dict(found.facts)),
        },
    }
    # With source files or weights of others only their bytes can tell: those are looked at again each time.
    if not any(sources.values()) and not unseen and not run_externals(typed, family_config(typed.family)):
        step.leave(answer, Receipt({}, found.hashes))
    return answer


def train_stage(
    checkpoint: Artifact, metrics: MetricsArtifact, stage: str, data: str, parents: str, **parameters: Any
) -> tuple[str]:
    """Train, continue or reuse one stage; returns the checkpoint it hands on, or "" where there is none.

    A stage that is not selected hands on what it finished before with these settings.
    data, parents: as the steps before hand them on, encoded; parents as `role=reference` words, an empty one is none.
    """
    with step_body(stage, str(parameters.get("branch", ""))) as body:
        step = open_step(body, parameters, data, parents)
        answer = step.take_receipt() or _train(step, stage, decode(data), split_pairs(parents))
        show_answer(checkpoint, answer)
        show_answer(metrics, {**answer, "metadata": {}})
        log_metrics(metrics, answer)
        return (encode(str(answer["reference"])),)


def _train(step: Step, stage: str, data: str, parents: Mapping[str, str]) -> dict[str, Any]:
    from stageline.checkpoint.metadata import METADATA_NAME
    from stageline.checkpoint.verify import refuse_damaged
    from stageline.work.decision import decide_stage, hand_on
    from stageline.work.given import given_by, given_to_stage
    from stageline.work.work import refuse_blocked

    body, config = step.body, step.request.config
    given = given_to_stage(config, stage, data, parents)
    work = hand_on(config, stage, step.root, given)
    if work.action == "not selected":
        body.say("skipped", "not selected by `stages`, and not finished with these settings")
        return {"reference": "", "metadata": {"selected": False}, "metrics": {}}
    refuse_blocked(work)
    if work.finished is not None:
        refuse_damaged(work.finished)
        selected = "" if work.action == "reuse" else "not selected by `stages`; finished before, "
        body.say("reused", f"{selected}{_short(work.reference)}")
    else:
        verb = "continuing" if work.action == "continue" else "training"
        steps = f" {work.steps} steps" if work.steps else ""
        start = f" from step {work.from_step}" if work.from_step else ""
        body.say("running", f"{verb}{steps}{start}: {'; '.join(work.reasons)}")
        given = given_by(work.arguments()) or given
        step.run(work, given)
        work = decide_stage(config, stage, step.root, given)
        if work.finished is None:
            why = "; ".join(work.reasons)
            raise StepFailedError(f"stage {stage!r} ended without a final checkpoint ({why})", exit_code=1)
        made = work.finished
        end = work.diverged or _best(made.metadata)
        body.say("done", f"{made.metadata.step} steps, {end}{_short(work.reference)}")
    ref = work.finished
    metadata = ref.metadata
    best = metadata.best
    answer = {
        "reference": work.reference,
        "metadata": {
            "family": metadata.family,
            "stage": metadata.stage,
            "run": metadata.run,
            "step": metadata.step,
            "content": ref.content,
            "stage_fingerprint": metadata.stage_fingerprint,
            "facts": json.dumps(metadata.facts),
            **({"diverged": work.diverged} if work.diverged else {}),
        },
        "metrics": {"step": metadata.step, **({best.metric: best.value} if best else {}), **metadata.metrics},
    }
    if not _moves(config.parents.get(stage, {})):
        hashes = {METADATA_NAME: ref.digest, **{name: record.sha256 for name, record in metadata.files.items()}}
        step.leave(answer, rest_on(step.root, ref.uri, hashes))
    return answer


def _moves(named: Mapping[str, str]) -> bool:
    """Whether a parent is named in a way that can mean another checkpoint tomorrow. named: role -> name."""
    return any(name != FROM_SCRATCH and "@sha256:" not in name for name in named.values())


def evaluate(metrics: MetricsArtifact, data: str, checkpoints: str, **parameters: Any) -> tuple[str]:
    """Evaluate what the config says, the last selected stage by default, or reuse its evaluation; returns where it is.

    "" where no stage of the run has anything to evaluate.

    data, checkpoints: as the steps before hand them on, encoded; checkpoints as `stage=reference` words.
    """
    with step_body("evaluate", str(parameters.get("branch", ""))) as body:
        step = open_step(body, parameters, data, checkpoints)
        answer = step.take_receipt() or _evaluate(step, decode(data), split_pairs(checkpoints))
        show_answer(metrics, answer)
        log_metrics(metrics, answer)
        return (encode(str(answer["reference"])),)


def _evaluate(step: Step, data: str, stages: Mapping[str, str]) -> dict[str, Any]:
    from stageline.families import family_config
    from stageline.work.decision import decide_evaluation
    from stageline.work.evaluations import asked_checkpoints, refuse_damaged
    from stageline.work.given import Given, given_by
    from stageline.work.work import refuse_blocked

    body, config, folder = step.body, step.request.config, step.root.child("runs", step.run_name)
    given = Given(data, stages=stages)
    work = decide_evaluation(config, step.root, given)
    refuse_blocked(work)
    if work.action == "not evaluated":
        body.say("skipped", f"not evaluated: {'; '.join(work.reasons)}")
        return {"reference": "", "metadata": {"evaluated": False}, "metrics": {}}
    if work.found is not None:
        refuse_damaged(folder, work.found)
        body.say("reused", _short(work.reference), reference=work.reference)
    else:
        what = ", ".join(f"{ref.metadata.stage} step {ref.metadata.step}" for ref in work.checkpoints.values())
        body.say("running", f"evaluating {what}")
        given = given_by(work.arguments()) or given
        step.run(work, given)
        work = decide_evaluation(config, step.root, given)
        if work.found is None:
            raise StepFailedError("the evaluation ended without its metrics", exit_code=1)
        body.say("done", _short(work.reference), reference=work.reference)
    found = work.found
    refs = [str(ref.reference) for ref in work.checkpoints.values()]
    answer = {
        "reference": work.reference,
        "metadata": {"num_samples": json.dumps(dict(found.num_samples)), "checkpoint": " ".join(map(encode, refs))},
        "metrics": dict(found.metrics),
    }
    known = family_config(config.family).stages
    if not _moves({name: target for name, target in asked_checkpoints(config).items() if target not in known}):
        step.leave(answer, rest_on(step.root, found.reference.uri, found.hashes))
    return answer


def compare(comparison: Artifact, evaluation: str, other: str, **parameters: Any) -> tuple[str]:
    """Compare the run's evaluation with another one, sample by sample; returns where the comparison lies.

    evaluation: as the evaluation before hands it on, encoded; it is A.  other: B, an evaluation or a run by URI or by
    the name of a run below the same root, encoded too. Not worth a receipt: it takes seconds and B may move.
    """
    with step_body("compare", str(parameters.get("branch", ""))) as body:
        step = open_step(body, parameters, evaluation, other)
        if not (evaluation and other):
            body.say("skipped", "nothing was evaluated")
            show_answer(comparison, {"reference": "", "metadata": {}})
            return ("",)
        from stageline.verbs.compare import NO_DIFFERENCE, compare_evaluations

        made = compare_evaluations(decode(evaluation), decode(other), root=step.root.uri)
        shown = [found for found in made.differences if found.verdict != NO_DIFFERENCE]
        text = f"{len(shown)} of {len(made.differences)} metrics show a difference: {made.uri}"
        body.say("done", text, reference=made.uri)
        answer = {"reference": made.uri, "metadata": {"metrics": len(made.differences), "differences": len(shown)}}
        show_answer(comparison, answer, json.dumps(dict(made.plain), indent=1).encode())
        return (encode(made.uri),)


def report(page: Artifact, evaluation: str, comparison: str, **parameters: Any) -> tuple[str]:
    """Write the run's report or keep it where nothing before it changed; returns where it lies.

    evaluation, comparison: as the steps before hand them on, "" for none.
    """
    with step_body("report", str(parameters.get("branch", ""))) as body:
        step = open_step(body, parameters, evaluation, *filter(None, [comparison]))
        answer = step.take_receipt()
        if answer is None:
            from stageline.verbs.report import build_report

            uri = str(build_report(step.root.child("runs", step.run_name).uri))
            key = below(step.root, uri)
            digest = hashlib.sha256(step.root.get(key)).hexdigest() if key else ""
            answer = {"reference": uri, "metadata": {"sha256": digest}}
            step.leave(answer, Receipt({}, {key: digest}) if key else None)
            body.say("done", uri)
        key = below(step.root, str(answer["reference"]))
        show_answer(page, answer, step.root.get(key) if key else None)
        return (encode(str(answer["reference"])),)


def _short(reference: str) -> str:
    uri, _, digest = reference.partition("@sha256:")
    return f"digest {digest[:12]}" if digest else uri


def _best(metadata: Any) -> str:
    best = metadata.best
    return f"best {best.metric} {best.value:.4f} at step {best.step}, " if best else ""

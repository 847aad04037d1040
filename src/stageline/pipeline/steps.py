"""The bodies of the four components. What passes between them is a reference, `<uri>@sha256:<digest>`, or nothing.

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
from typing import Any

from stageline.config.cluster import ClusterConfig
from stageline.errors import PlanError, StepFailedError
from stageline.jobs.job import Job, job_name
from stageline.jobs.placement import check_mounted
from stageline.jobs.step_lines import DRIVER_VARIABLE
from stageline.pipeline.artifacts import Artifact, MetricsArtifact, log_metrics, show_answer
from stageline.pipeline.body import Body, step_body
from stageline.pipeline.item_job import Probe, run_verb
from stageline.pipeline.receipts import Receipt, below, question, read_receipt, rest_on, write_receipt
from stageline.pipeline.request import Request, read_request
from stageline.store import Store, open_store
from stageline.store.settings import apply_storage


@dataclass(frozen=True)
class Step:
    """One step at work on one request. asked: what its answer depends on, as a hash."""

    body: Body
    request: Request
    root: Store
    asked: str

    @property
    def raw(self) -> dict[str, Any]:
        return dict(self.request.raw)

    @property
    def run(self) -> str:
        return self.request.config.run

    def cluster(self, config: Any = None) -> ClusterConfig | None:
        """Where jobs run: None is this machine. config: a stage's own, none is the run's."""
        own: ClusterConfig = (config or self.request.config).cluster
        return own if self.request.launcher == "pytorchjob" else None

    def job(self, arguments: tuple[str, ...], fingerprint: str, **fields: Any) -> Job:
        """The job of this step; fields: nodes, processes, shutdown_timeout_seconds where they are not 1, 1 and 5."""
        item = self.body.item
        return Job(
            name=job_name(self.run, item, ""),
            arguments=arguments,
            config=self.raw,
            run=self.run,
            item=item,
            family=self.request.config.family,
            fingerprint=fingerprint,
            **{"shutdown_timeout_seconds": 5, **fields},
        )

    def leave(self, answer: dict[str, Any], rest: Receipt | None) -> None:
        """Leave a receipt for the next run; what lies outside the root is decided anew each time."""
        if rest is not None:
            write_receipt(self.root, self.run, self.body.item, self.asked, Receipt(answer, rest.hashes))

    def take_receipt(self) -> dict[str, Any] | None:
        """The answer given before to the same question, said aloud."""
        receipt = read_receipt(self.root, self.run, self.body.item, self.asked)
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
    if not os.environ.get(DRIVER_VARIABLE):
        from stageline.pipeline.journal import Journal

        body.journal = Journal(request.config)
        if body.item == "prepare_data":
            body.journal.open_run(request.kfp_run)
        body.journal.begin()
    return Step(body, request, root, question(body.item, request.text, *references))


def prepare_data(dataset: Artifact, **parameters: Any) -> tuple[str]:
    """Prepare the data of a config or reuse them; returns their reference. parameters: the pipeline's own."""
    with step_body("prepare_data") as body:
        step = open_step(body, parameters)
        answer = step.take_receipt() or _prepare(step)
        show_answer(dataset, answer)
        return (str(answer["reference"]),)


def _prepare(step: Step) -> dict[str, Any]:
    from stageline.data.prepared import find_prepared, refuse_incomplete
    from stageline.families import family_config
    from stageline.work.data import hash_sources, prepared_fingerprint, run_splits

    body, root, typed = step.body, step.root, step.request.config
    splits = run_splits(typed, family_config(typed.family))
    sources = hash_sources(splits)
    key = prepared_fingerprint(typed, splits, sources)
    found = find_prepared(root, key)
    if found:
        refuse_incomplete(found)
        body.say("reused", _short(str(found.reference)), reference=str(found.reference))
    else:
        body.say("running", "preparing data")
        probe = Probe(lambda: find_prepared(root, key) is not None)
        run_verb(body, step.job(("prepare",), key), probe, step.cluster())
        found = find_prepared(root, key)
        if found is None:
            raise PlanError("the source files changed while the data were prepared", remedy="run again")
        body.say("done", f"{found.num_files} files, {found.num_bytes} bytes, {_short(str(found.reference))}")
    reference = found.reference
    answer = {
        "reference": str(reference),
        "metadata": {
            "num_files": found.num_files,
            "num_bytes": found.num_bytes,
            "facts": json.dumps(dict(found.facts)),
        },
    }
    if not any(sources.values()):  # with source files only their bytes can tell: those are read again each time
        step.leave(answer, Receipt({}, found.hashes))
    return answer


def train_stage(
    checkpoint: Artifact, metrics: MetricsArtifact, stage: str, data: str, parents: str, **parameters: Any
) -> tuple[str]:
    """Train, continue or reuse one stage; returns the checkpoint it hands on, or "" where it is not selected.

    parents: `role=reference` words, as handed on by the stages before; an empty reference is none.
    """
    with step_body(stage) as body:
        step = open_step(body, parameters, data, parents)
        selected = step.request.config.stages
        if selected is not None and stage not in selected:
            body.say("skipped", "not selected by `stages`")
            answer: dict[str, Any] = {"reference": "", "metadata": {"selected": False}, "metrics": {}}
        else:
            answer = step.take_receipt() or _train(step, stage, data, parents)
        show_answer(checkpoint, answer)
        show_answer(metrics, {**answer, "metadata": {}})
        log_metrics(metrics, answer)
        return (str(answer["reference"]),)


def _train(step: Step, stage: str, data: str, parents: str) -> dict[str, Any]:
    from stageline.checkpoint.layout import StageDir
    from stageline.checkpoint.metadata import METADATA_NAME
    from stageline.work.references import committed_step, decide, refuse_blocked, refuse_damaged

    body, raw = step.body, step.raw
    decision = decide(raw, stage, data, parents)
    refuse_blocked(decision.item)
    ref = decision.ref
    if ref is not None:
        refuse_damaged(ref)
        body.say("reused", _short(str(ref.reference)))
    else:
        verb = "continuing" if decision.item.action == "continue" else "training"
        steps = f" {decision.item.steps} steps" if decision.item.steps else ""
        start = f" from step {decision.item.from_step}" if decision.item.from_step else ""
        body.say("running", f"{verb}{steps}{start}: {'; '.join(decision.item.reasons)}")
        trainer = decision.config.trainer
        words = [f"--parent={role}={decision.item.parents.get(role, '')}" for role in decision.roles]
        job = step.job(
            ("train", stage, f"--data={data}", *words),
            decision.fingerprint,
            nodes=trainer.nodes,
            processes=trainer.processes,
            shutdown_timeout_seconds=trainer.shutdown_timeout_seconds,
        )
        directory = StageDir(step.root, step.run, stage)
        probe = Probe(
            lambda: decide(raw, stage, data, parents).ref is not None,
            lambda: committed_step(directory, decision.fingerprint),
        )
        run_verb(body, job, probe, step.cluster(decision.config))
        after = decide(raw, stage, data, parents)
        ref = after.ref
        if ref is None:
            why = "; ".join(after.item.reasons)
            raise StepFailedError(f"stage {stage!r} ended without a final checkpoint ({why})", exit_code=1)
        body.say("done", f"{ref.metadata.step} steps, {_best(ref.metadata)}{_short(str(ref.reference))}")
    metadata = ref.metadata
    best = metadata.best
    answer = {
        "reference": str(ref.reference),
        "metadata": {
            "family": metadata.family,
            "stage": metadata.stage,
            "run": metadata.run,
            "step": metadata.step,
            "content": ref.content,
            "stage_fingerprint": metadata.stage_fingerprint,
            "facts": json.dumps(metadata.facts),
        },
        "metrics": {"step": metadata.step, **({best.metric: best.value} if best else {}), **metadata.metrics},
    }
    hashes = {METADATA_NAME: ref.digest, **{name: record.sha256 for name, record in metadata.files.items()}}
    step.leave(answer, rest_on(step.root, ref.uri, hashes))
    return answer


def evaluate(metrics: MetricsArtifact, data: str, checkpoints: str, **parameters: Any) -> tuple[str]:
    """Evaluate the last checkpoint named, or reuse its evaluation; returns the reference of that."""
    with step_body("evaluate") as body:
        step = open_step(body, parameters, data, checkpoints)
        answer = step.take_receipt() or _evaluate(step, data, checkpoints)
        show_answer(metrics, answer)
        log_metrics(metrics, answer)
        return (str(answer["reference"]),)


def _evaluate(step: Step, data: str, checkpoints: str) -> dict[str, Any]:
    from stageline.checkpoint.layout import resolve
    from stageline.data.prepared import read_prepared
    from stageline.work.data import evaluation_inputs
    from stageline.work.evaluations import evaluation_fingerprint, find_evaluation, refuse_damaged

    named = checkpoints.split()
    if not named:
        raise PlanError("there is no checkpoint to evaluate: no stage handed one on", remedy="select a stage")
    body = step.body
    ref = resolve(named[-1])
    inputs = evaluation_inputs(step.request.config, read_prepared(data))
    name = evaluation_fingerprint(step.request.config, ref.content, ref.metadata.facts, inputs)
    folder = step.root.child("runs", step.run)
    found = find_evaluation(folder, name)
    if found:
        refuse_damaged(folder, found)
        body.say("reused", _short(str(found.reference)), reference=str(found.reference))
    else:
        body.say("running", f"evaluating {ref.metadata.stage} step {ref.metadata.step}")
        words = ("evaluate", "--quiet", f"--checkpoint={ref.reference}", f"--data={data}")
        run_verb(body, step.job(words, name), Probe(lambda: find_evaluation(folder, name) is not None), step.cluster())
        found = find_evaluation(folder, name)
        if found is None:
            raise StepFailedError("the evaluation ended without its metrics", exit_code=1)
        body.say("done", _short(str(found.reference)), reference=str(found.reference))
    answer = {
        "reference": str(found.reference),
        "metadata": {"num_samples": json.dumps(dict(found.num_samples)), "checkpoint": str(ref.reference)},
        "metrics": dict(found.metrics),
    }
    step.leave(answer, rest_on(step.root, found.reference.uri, found.hashes))
    return answer


def report(page: Artifact, evaluation: str, **parameters: Any) -> tuple[str]:
    """Write the run's report or keep it where nothing before it changed; returns where it lies."""
    with step_body("report") as body:
        step = open_step(body, parameters, evaluation)
        answer = step.take_receipt()
        if answer is None:
            from stageline.verbs.report import build_report

            uri = str(build_report(step.root.child("runs", step.run).uri))
            key = below(step.root, uri)
            digest = hashlib.sha256(step.root.get(key)).hexdigest() if key else ""
            answer = {"reference": uri, "metadata": {"sha256": digest}}
            step.leave(answer, Receipt({}, {key: digest}) if key else None)
            body.say("done", uri)
        key = below(step.root, str(answer["reference"]))
        show_answer(page, answer, step.root.get(key) if key else None)
        return (str(answer["reference"]),)


def _short(reference: str) -> str:
    uri, _, digest = reference.partition("@sha256:")
    return f"digest {digest[:12]}" if digest else uri


def _best(metadata: Any) -> str:
    best = metadata.best
    return f"best {best.metric} {best.value:.4f} at step {best.step}, " if best else ""

"""The bodies of the four components. What passes between them is a reference, `<uri>@sha256:<digest>`, or nothing.

Each first looks for a receipt (standard library and store only), then decides from config and checkpoints, and only
then starts a process that trains, evaluates or prepares.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Protocol

from stageline.errors import PlanError, StagelineError, StepFailedError
from stageline.execute.body import Body, step_body
from stageline.execute.process import check_launcher, run_verb
from stageline.execute.receipt import Receipt, below, question, read_receipt, rest_on, write_receipt
from stageline.store import Reference, Store, open_store


class Artifact(Protocol):
    """What the library needs of a KFP artifact."""

    uri: str
    metadata: dict[str, Any]


class MetricsArtifact(Artifact, Protocol):
    def log_metric(self, metric: str, value: float) -> None: ...


def prepare_data(config: str, dataset: Artifact) -> tuple[str]:
    """Prepare the data of a config or reuse them; returns their reference."""
    with step_body("prepare_data") as body:
        raw, root, run = _read_config(config)
        asked = question("prepare_data", config)
        receipt = read_receipt(root, run, "prepare_data", asked)
        answer = receipt.answer if receipt else _prepare(body, raw, root, run, asked)
        if receipt:
            body.say("reused", _short(answer["reference"]), reference=answer["reference"])
        _fill(dataset, answer)
        return (str(answer["reference"]),)


def _prepare(body: Body, raw: dict[str, Any], root: Store, run: str, asked: str) -> dict[str, Any]:
    from stageline.data.prepared import MANIFEST, find_prepared, refuse_damaged
    from stageline.families import family_config, parse_config
    from stageline.prepare import hash_sources, prepared_fingerprint

    typed = parse_config(raw)
    family = family_config(typed.family)
    sources = hash_sources(typed, family)
    key = prepared_fingerprint(typed, family, sources)
    found = find_prepared(root, key)
    if found:
        refuse_damaged(found.reference)
        body.say("reused", _short(str(found.reference)), reference=str(found.reference))
    else:
        body.say("running", "preparing data")
        run_verb(body, f"{run}-prepare", ["prepare"], raw, processes=1, timeout_seconds=5)
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
    if not sources:  # with source files only their bytes can tell: those are read again each time
        _leave(
            root,
            run,
            "prepare_data",
            asked,
            answer,
            rest_on(root, reference.uri, {MANIFEST: reference.digest, **found.hashes}),
        )
    return answer


def train_stage(
    config: str, stage: str, data: str, parents: str, launcher: str, checkpoint: Artifact, metrics: MetricsArtifact
) -> tuple[str]:
    """Train, continue or reuse one stage; returns the checkpoint it hands on, or "" where it is not selected.

    parents: `role=reference` words, as handed on by the stages before; an empty reference is none.
    """
    with step_body(stage) as body:
        check_launcher(launcher)
        raw, root, run = _read_config(config)
        asked = question(stage, config, data, parents)
        receipt = read_receipt(root, run, stage, asked)
        if receipt:
            answer = dict(receipt.answer)
            body.say("reused", _short(str(answer["reference"])), reference=answer["reference"])
        elif raw.get("stages") is not None and stage not in raw["stages"]:
            body.say("skipped", "not selected by `stages`")
            answer = {"reference": "", "metadata": {"selected": False}, "metrics": {}}
        else:
            answer = _train(body, stage, data, parents, raw, root, run, asked)
        _fill(checkpoint, answer)
        _log(metrics, answer)
        return (str(answer["reference"]),)


def _train(
    body: Body, stage: str, data: str, parents: str, raw: dict[str, Any], root: Store, run: str, asked: str
) -> dict[str, Any]:
    from stageline.checkpoint.metadata import METADATA_NAME
    from stageline.execute.decision import decide, refuse_blocked, refuse_damaged

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
        run_verb(
            body,
            f"{run}-{stage}",
            ["train", stage, f"--data={data}", *words],
            raw,
            processes=trainer.world_size,
            timeout_seconds=trainer.shutdown_timeout_seconds,
        )
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
    _leave(root, run, stage, asked, answer, rest_on(root, ref.uri, hashes))
    return answer


def evaluate(config: str, data: str, checkpoints: str, launcher: str, metrics: MetricsArtifact) -> tuple[str]:
    """Evaluate the last checkpoint named, or reuse its evaluation; returns the reference of that."""
    with step_body("evaluate") as body:
        check_launcher(launcher)
        raw, root, run = _read_config(config)
        asked = question("evaluate", config, data, checkpoints)
        receipt = read_receipt(root, run, "evaluate", asked)
        if receipt:
            answer = dict(receipt.answer)
            body.say("reused", _short(str(answer["reference"])), reference=answer["reference"])
        else:
            answer = _evaluate(body, data, checkpoints, raw, root, run, asked)
        _fill(metrics, answer)
        _log(metrics, answer)
        return (str(answer["reference"]),)


def _evaluate(
    body: Body, data: str, checkpoints: str, raw: dict[str, Any], root: Store, run: str, asked: str
) -> dict[str, Any]:
    from stageline.checkpoint.layout import resolve
    from stageline.evaluate.record import evaluation_fingerprint, find_evaluation, refuse_damaged
    from stageline.families import parse_config

    named = checkpoints.split()
    if not named:
        raise PlanError("there is no checkpoint to evaluate: no stage handed one on", remedy="select a stage")
    typed = parse_config(raw)
    ref = resolve(named[-1])
    name = evaluation_fingerprint(typed, ref.content, ref.metadata.facts, Reference.parse(data).digest)
    folder = root.child("runs", run)
    found = find_evaluation(folder, name)
    if found:
        refuse_damaged(folder, found)
        body.say("reused", _short(str(found.reference)), reference=str(found.reference))
    else:
        body.say("running", f"evaluating {ref.metadata.stage} step {ref.metadata.step}")
        words = ["evaluate", "--quiet", f"--checkpoint={ref.reference}", f"--data={data}"]
        run_verb(body, f"{run}-evaluate", words, raw, processes=1, timeout_seconds=5)
        found = find_evaluation(folder, name)
        if found is None:
            raise StepFailedError("the evaluation ended without its metrics", exit_code=1)
        body.say("done", _short(str(found.reference)), reference=str(found.reference))
    numbers = {key: value for key, value in found.metrics.items() if isinstance(value, (int, float))}
    answer = {
        "reference": str(found.reference),
        "metadata": {"num_samples": json.dumps(dict(found.num_samples)), "checkpoint": str(ref.reference)},
        "metrics": numbers,
    }
    rest = rest_on(root, found.reference.uri, found.hashes)
    _leave(root, run, "evaluate", asked, answer, rest)
    return answer


def report(config: str, evaluation: str, page: Artifact) -> tuple[str]:
    """Write the run's report or keep it where nothing before it changed; returns where it lies."""
    with step_body("report") as body:
        _, root, run = _read_config(config)
        asked = question("report", config, evaluation)
        receipt = read_receipt(root, run, "report", asked)
        if receipt:
            answer = dict(receipt.answer)
            body.say("reused", str(answer["reference"]))
        else:
            from stageline.report import build_report

            folder = root.child("runs", run)
            uri = str(build_report(folder.uri))
            key = below(root, uri)
            digest = hashlib.sha256(root.get(key)).hexdigest() if key else ""
            answer = {"reference": uri, "metadata": {"sha256": digest}}
            _leave(root, run, "report", asked, answer, Receipt({}, {key: digest}) if key else None)
            body.say("done", uri)
        _fill(page, answer)
        return (str(answer["reference"]),)


def _read_config(config: str) -> tuple[dict[str, Any], Store, str]:
    """(raw config, root, run). The pipeline's caller writes both into the config it passes."""
    raw = json.loads(config)
    missing = [key for key in ("family", "root", "run") if not isinstance(raw.get(key), str)]
    if missing:
        raise StagelineError(f"the pipeline's config lacks {', '.join(missing)}", remedy="`stageline run` passes them")
    root = open_store(raw["root"])
    if root.in_process:
        raise PlanError(
            f"{root.uri} lives inside one process, and every step of a pipeline is its own",
            remedy="set root to a folder, s3:// or gs://",
        )
    return raw, root, raw["run"]


def _leave(root: Store, run: str, item: str, asked: str, answer: dict[str, Any], rest: Receipt | None) -> None:
    if rest is not None:  # what lies outside the root is decided anew each time
        write_receipt(root, run, item, asked, Receipt(answer, rest.hashes))


def _fill(artifact: Artifact, answer: Any) -> None:
    """Show the answer on a typed artifact: where it lies, what it is."""
    reference = str(answer["reference"])
    uri = reference.partition("@sha256:")[0]
    if "://" in uri:  # a local path is shown as metadata only: kfp looks for its own file under `uri`
        artifact.uri = uri
    artifact.metadata.update({"reference": reference, **answer["metadata"]})


def _log(artifact: MetricsArtifact, answer: Any) -> None:
    for name, value in answer.get("metrics", {}).items():
        artifact.log_metric(name, float(value))


def _short(reference: str) -> str:
    uri, _, digest = reference.partition("@sha256:")
    return f"digest {digest[:12]}" if digest else uri


def _best(metadata: Any) -> str:
    best = metadata.best
    return f"best {best.metric} {best.value:.4f} at step {best.step}, " if best else ""

"""Jobs that need no torch: the launcher's own rendering with another command, and a file as the store of their result.

The launcher runs in a process of its own, so that a test can kill it at any of its requests; what it says and the lines
of the pods go to a file.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stageline.config import ClusterConfig
from stageline.errors import StagelineError
from stageline.jobs.cluster.follow.job_lease import Holder
from stageline.jobs.cluster.follow.launcher import ClusterJob
from stageline.jobs.job import Job, Verdict, job_name
from stageline.kube.client import Api

FOREVER = "echo begun; trap 'echo stopping; exit 143' TERM; while true; do sleep 0.2; done"


class FileResult:
    """A result is a file: whether it is there, and the step it says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def finished(self) -> bool:
        return self.path.with_suffix(".done").exists()

    def progress(self) -> int:
        return int(self.path.read_text()) if self.path.exists() else -1


def trivial_job(run: str, *, fingerprint: str = "aaaa", nodes: int = 1, item: str = "film") -> Job:
    """A stage whose config nobody reads."""
    return Job(
        name=job_name(run, item),
        arguments=("train", item),
        config={"family": "film_flow", "root": "s3://none/none", "run": run},
        run=run,
        item=item,
        family="film_flow",
        fingerprint=fingerprint,
        nodes=nodes,
        shutdown_timeout_seconds=2,
    )


def trivial_cluster(namespace: str, image: str, **settings: Any) -> ClusterConfig:
    """Small pods of the default account."""
    plain = {
        "namespace": namespace,
        "image": image,
        "service_account": "default",
        "grace_seconds": 4,
        "shared_memory": "16Mi",
        "scratch": "64Mi",
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        **settings,
    }
    return ClusterConfig.model_validate(plain)


class TrivialJob(ClusterJob):
    """A job that runs a shell script instead of the entry. change: a last word on the manifest."""

    def __init__(
        self,
        job: Job,
        cluster: ClusterConfig,
        result: Any,
        say: Callable[[str], None],
        script: str,
        change: Callable[[dict[str, Any]], None] | None = None,
        api: Api | None = None,
        holder: Holder | None = None,
    ) -> None:
        super().__init__(job, cluster, result, say, api=api, holder=holder)
        container(self.manifest)["command"] = ["/bin/sh", "-c", script]
        if change is not None:
            change(self.manifest)


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    """The container of the workers."""
    found: dict[str, Any] = pod_spec(manifest)["containers"][0]
    return found


def pod_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """The workers' pod."""
    spec: dict[str, Any] = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    return spec


class Launcher:
    """A launcher in a process of its own, forked from one that has everything loaded; what it prints goes to a file.

    kill_at: (n, "before" | "after"): killed at its n-th request, before it is sent or once its answer began.
    kill_verb: (method, last part of the path, "before" | "after"): the same at the first such request.
    """

    def __init__(self, folder: Path, **plain: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"launcher-{len(list(folder.iterdir()))}.log"
        self.log.touch()
        self.process = _FORKS.Process(target=_main, args=(str(self.log), plain))
        self.process.start()

    def text(self) -> str:
        """What it printed so far."""
        return self.log.read_text()

    def await_text(self, words: str, seconds: float = 60) -> str:
        """Wait until it printed `words`."""
        end = time.monotonic() + seconds
        while words not in self.text():
            assert self.process.is_alive() or words in self.text(), f"it ended without {words!r}:\n{self.text()}"
            assert time.monotonic() < end, f"no {words!r} after {seconds} s:\n{self.text()}"
            time.sleep(0.05)
        return self.text()

    def signal(self, number: int = signal.SIGTERM) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self, seconds: float = 60) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, f"it did not end within {seconds} s:\n{self.text()}"
        # 255: the fork server lost its child before it could ask how it ended; nothing of ours ends so.
        return -signal.SIGKILL if code == 255 else code

    def verdict(self, seconds: float = 60) -> tuple[int, dict[str, Any]]:
        """Wait for the verdict it prints: exit code and record."""
        self.end(seconds)
        line = next((line for line in self.text().splitlines() if line.startswith("verdict ")), None)
        assert line, f"it printed no verdict:\n{self.text()}"
        code, record = json.loads(line.removeprefix("verdict "))
        return code, record or {}


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["kubernetes.client", "kubernetes.config", "stageline.jobs.cluster.follow.launcher"])


def _main(log: str, plain: dict[str, Any]) -> None:
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.exit(main(plain))


def main(plain: dict[str, Any]) -> int:
    """Launch and follow as `execute` does: signals cancel, an error becomes the exit code."""
    _trace(*plain.get("kill_at", (0, "")), *plain.get("kill_verb", ("", "", "")))

    def say(text: str) -> None:
        print(f"{time.time():.3f} say {text}", flush=True)

    started: TrivialJob | None = None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: started.cancel() if started else sys.exit(143))
    try:
        started = TrivialJob(
            trivial_job(plain["run"], **plain.get("job", {})),
            trivial_cluster(plain["namespace"], plain["image"], **plain.get("cluster", {})),
            FileResult(Path(plain["store"])),
            say,
            plain.get("script", FOREVER),
            api=Api.connect(plain["namespace"], kubeconfig=plain["kubeconfig"]),
        )
        started.start()
        print("following", flush=True)
        verdict = started.follow(lambda line: print(f"line {line}", flush=True))
    except StagelineError as error:
        verdict = Verdict.of(error)
    record = verdict.record.to_json() if verdict.record else None
    print("verdict " + json.dumps([verdict.exit_code, record]), flush=True)
    return verdict.exit_code


def _trace(kill_number: int, moment: str, method_at: str, last_at: str, verb_moment: str) -> None:
    """Print every request, and kill this process at one of them."""
    send, mutex, count = Api.send, threading.Lock(), 0

    def counted(self: Api, method: str, path: str, **options: Any) -> Any:
        nonlocal count
        with mutex:
            count += 1
            mine = count
            print(f"{time.time():.3f} request {mine} {method} {path.split('/namespaces/')[-1]}", flush=True)
        moments = [moment] if mine == kill_number else []
        if method == method_at and path.endswith(last_at):
            moments.append(verb_moment)
        if "before" in moments:
            os.kill(os.getpid(), signal.SIGKILL)
        response = send(self, method, path, **options)
        if "after" in moments:
            os.kill(os.getpid(), signal.SIGKILL)
        return response

    Api.send = counted  # type: ignore[method-assign]

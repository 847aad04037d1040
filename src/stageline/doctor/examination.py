"""All checks of one setting, in the order in which a person would mend what they find."""

from __future__ import annotations

from dataclasses import dataclass

from stageline.config import ClusterConfig
from stageline.doctor.line import Check, Line, unknown
from stageline.doctor.local import local_checks
from stageline.doctor.namespace import NAMESPACED, namespace_checks
from stageline.doctor.registry import check_image
from stageline.doctor.running import run_checks
from stageline.doctor.server import server_checks
from stageline.doctor.storage import check_store
from stageline.errors import MissingPartError, StagelineError
from stageline.kube.client import Api
from stageline.kube.keys import JOBS
from stageline.store.settings import apply_storage

SECONDS = 5.0
"""How long all checks together may take; they run at the same time."""


@dataclass(frozen=True)
class Setup:
    """What is examined. root: of the store, "" for none.  nodes: pods of the largest stage.

    launcher: service account that steps of a pipeline run under.  jobs: kind of the jobs, `plural.group/version`.
    """

    cluster: ClusterConfig
    root: str = ""
    nodes: int = 1
    launcher: str = "stageline-launcher"
    jobs: str = JOBS


def examine(setup: Setup, seconds: float = SECONDS, kubeconfig: str = "") -> list[Line]:
    """The lines of all checks; those of the cluster are one line where there is none."""
    s3 = setup.cluster.storage.s3
    apply_storage(s3.model_dump() if s3 else None)
    mount = setup.cluster.storage.mount_path if setup.cluster.storage.claim else ""
    checks = local_checks()
    checks.append(Check("store", lambda: check_store("store", setup.root, mount, s3.secret if s3 else "")))
    checks.append(Check("image", lambda: check_image("image", setup.cluster.image, seconds * 0.8)))
    missing: list[Line] = []
    try:
        api = Api.connect(setup.cluster.namespace, setup.cluster.context, kubeconfig)
    except MissingPartError as error:
        missing = [unknown("cluster", error.message, error.remedy)]
    except StagelineError as error:
        missing = [unknown("cluster", error.message, error.remedy)]
    else:
        checks += server_checks(api, setup.jobs, setup.launcher, setup.cluster)
        checks += namespace_checks(api, setup.cluster, setup.nodes)
    lines = run_checks(checks, seconds) + missing
    if any(line.name == "namespace" and line.state == "wrong" for line in lines):
        lines = [_below_namespace(line) for line in lines]
    return lines


def _below_namespace(line: Line) -> Line:
    """Without a namespace nothing of it can be there: one line says so, not ten."""
    if line.name in NAMESPACED and line.state == "wrong":
        return unknown(line.name, "there is no such namespace, see `namespace`")
    return line

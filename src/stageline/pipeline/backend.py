"""A Kubeflow Pipelines backend: submit a compiled pipeline, ask how a run goes, end it. Failures become sentences."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stageline.config.addresses import link_local_fault
from stageline.config.bounds import read_json
from stageline.errors import ClusterError, ClusterUnavailableError, ConfigError
from stageline.kube.refusals import TRY_AGAIN

ENDPOINT_VARIABLE = "KF_PIPELINES_ENDPOINT"
"""kfp's own name for it, which its command line reads too."""
ENDED = frozenset({"SUCCEEDED", "FAILED", "ERROR", "CANCELED", "SKIPPED"})


@dataclass(frozen=True)
class TaskState:
    """One task of a run, by the name it has in the compiled pipeline.  error: KFP's words."""

    name: str
    state: str
    error: str = ""


@dataclass(frozen=True)
class RunState:
    """state: KFP's word for the whole run; CANCELING for a while after it was terminated, then FAILED like others.

    tasks: those that have a state; drivers, DAGs and executors are among them.
    """

    state: str
    tasks: tuple[TaskState, ...]
    error: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Backend:
    """One KFP API server. Make it with `Backend.connect`."""

    def __init__(self, client: Any, endpoint: str, namespace: str) -> None:
        self._client = client
        self.endpoint = endpoint
        self._namespace = namespace or None

    @classmethod
    def connect(cls, endpoint: str = "", namespace: str = "", token: str = "") -> Backend:
        """Reach an API server; sends one request.

        endpoint: its URL; "" takes $KF_PIPELINES_ENDPOINT.  namespace: of a multi-user backend.
        token: bearer token; "" is what kfp finds itself.
        """
        endpoint = endpoint or os.environ.get(ENDPOINT_VARIABLE, "")
        if not endpoint:
            raise ConfigError(
                "no Kubeflow Pipelines endpoint given",
                remedy=f"--endpoint https://… or {ENDPOINT_VARIABLE}; in the cluster http://ml-pipeline.kubeflow:8888",
            )
        if fault := link_local_fault(endpoint):
            raise ConfigError(fault, remedy="give the URL of a Kubeflow Pipelines API server")
        with warnings.catch_warnings(), _kfp_errors(endpoint, "reach"):
            warnings.simplefilter("ignore")
            from kfp import Client

            class Impatient(Client):  # type: ignore[misc]  # kfp has no types
                """kfp's own asks five times, five seconds apart, with a traceback each, also where it was refused."""

                def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:  # noqa: ARG002
                    return self._healthz_api.healthz_service_get_healthz()

            client = Impatient(host=endpoint, namespace=namespace or "kubeflow", existing_token=token or None)
            client.get_kfp_healthz()
        return cls(client, endpoint, namespace)

    def submit(
        self, pipeline: Path, arguments: Mapping[str, Any], *, name: str, experiment: str, service_account: str
    ) -> str:
        """Create a run with KFP's caching off; returns its id. The experiment is created if there is none."""
        with warnings.catch_warnings(), _kfp_errors(self.endpoint, "create a run at"):
            warnings.simplefilter("ignore")
            found = self._client.create_experiment(name=experiment, namespace=self._namespace)
            run = self._client.run_pipeline(
                experiment_id=found.experiment_id,
                job_name=name,
                pipeline_package_path=str(pipeline),
                params=dict(arguments),
                enable_caching=False,
                service_account=service_account or None,
            )
            return str(run.run_id)

    def state(self, run_id: str) -> RunState:
        """How a run goes."""
        with _kfp_errors(self.endpoint, "ask for a run at"):
            run = self._client.get_run(run_id)
        details = run.run_details.task_details if run.run_details and run.run_details.task_details else ()
        tasks = [
            TaskState(str(task.display_name), str(task.state), _message(task.error))
            for task in details
            if task.display_name and task.state
        ]
        return RunState(str(run.state), tuple(tasks), _message(run.error))

    def terminate(self, run_id: str) -> None:
        """Ask the backend to end a run."""
        with _kfp_errors(self.endpoint, "terminate a run at"):
            self._client.terminate_run(run_id)


def _message(error: Any) -> str:
    return str(getattr(error, "message", "") or "")


@contextmanager
def _kfp_errors(endpoint: str, verb: str) -> Iterator[None]:
    """Failures of kfp's client as ours."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise _refusal(error, endpoint, verb) from error
    except (HTTPError, OSError, TimeoutError) as error:
        raise ClusterUnavailableError(
            f"no Kubeflow Pipelines backend answers at {endpoint}: {error}",
            remedy="check --endpoint; from outside: kubectl -n kubeflow port-forward svc/ml-pipeline 8888",
        ) from error


def _refusal(error: Any, endpoint: str, verb: str) -> ClusterError | ClusterUnavailableError:
    status = error.status or 0
    reason = _reason(error)
    head = f"could not {verb} {endpoint}: {status} {error.reason}{': ' + reason if reason else ''}"
    if status in TRY_AGAIN | {408}:
        return ClusterUnavailableError(head, remedy="try again; if it stays so, look into the API server's log")
    remedies = {
        401: "log in: --token, or the cookie of the login page in kfp's context file",
        403: "ask for the right to create runs in that namespace, or give another --namespace",
        404: "check --endpoint: it is the URL of the API, as a rule without a path",
    }
    return ClusterError(head, remedy=remedies.get(status, "mend what the message names"))


def _reason(error: Any) -> str:
    """The backend's own sentence out of the JSON body of a refusal, on one line."""

    try:
        plain = read_json(error.body or "")
        text = str(plain.get("message") or plain.get("error") or "") if isinstance(plain, dict) else ""
    except ValueError:
        text = str(error.body or "")
    return " ".join(text.split())[:500]

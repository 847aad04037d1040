"""A step of the compiled pipeline as a pod, as KFP's backend would start it, without the backend.

Command and arguments come from the compiled YAML; the executor input is filled in by hand, as KFP's driver does it, and
the outputs are read from the file that KFP's launcher reads. What the platform settings say (claim, Secret, ConfigMaps,
user) becomes the pod's; the rest is what the backend adds by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

Kubectl = Callable[..., str]

OUTPUT = "/tmp/kfp_outputs/output_metadata.json"
SHOW = 'mkdir -p /tmp/kfp_outputs; "$@"; code=$?; echo; echo @@outputs; cat ' + OUTPUT + " 2>/dev/null; exit $code"
"""Runs the step's own command, then shows the outputs, which in KFP its launcher would read."""
STEPS = ("prepare-data", "train-stage", "train-stage-2", "evaluate", "report")


class CompiledPipeline:
    """One compiled file and the parameters of a run of it."""

    def __init__(self, path: Path, parameters: Mapping[str, Any]) -> None:
        self.spec, platforms = yaml.safe_load_all(path.read_text())
        self.platform = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        definitions = self.spec["root"]["inputDefinitions"]["parameters"]
        assert set(parameters) <= set(definitions), "what people may give"
        self.parameters = {name: definition["defaultValue"] for name, definition in definitions.items()} | parameters

    def executor_input(self, task: str, outputs: Mapping[str, str]) -> dict[str, Any]:
        """What KFP's driver hands to a step. outputs: task -> its output `reference`, of the steps before."""
        spec = self.spec["root"]["dag"]["tasks"][task]
        values: dict[str, Any] = {}
        for name, source in spec["inputs"]["parameters"].items():
            if "componentInputParameter" in source:
                values[name] = self.parameters[source["componentInputParameter"]]
            elif "taskOutputParameter" in source:
                values[name] = outputs[source["taskOutputParameter"]["producerTask"]]
            else:
                values[name] = source["runtimeValue"]["constant"].replace("{{$.pipeline_job_uuid}}", "kfp-run-1")
        for name, value in values.items():  # texts put together of several, as KFP's launcher fills them in
            if isinstance(value, str):
                for other, text in values.items():
                    value = value.replace(f"{{{{$.inputs.parameters['{other}']}}}}", str(text))
                values[name] = value
        component = self.spec["components"][spec["componentRef"]["name"]]
        artifacts = {
            name: {
                "artifacts": [
                    {"name": name, "uri": f"s3://kfp/{task}/{name}", "type": artifact["artifactType"], "metadata": {}}
                ]
            }
            for name, artifact in component["outputDefinitions"]["artifacts"].items()
        }
        parameters = {"reference": {"outputFile": "/tmp/kfp_outputs/reference"}}
        return {
            "inputs": {"parameterValues": values},
            "outputs": {"artifacts": artifacts, "parameters": parameters, "outputFile": OUTPUT},
        }

    def pod(self, task: str, name: str, outputs: Mapping[str, str]) -> dict[str, Any]:
        """The pod of a step."""
        label = self.spec["components"][self.spec["root"]["dag"]["tasks"][task]["componentRef"]["name"]][
            "executorLabel"
        ]
        container = self.spec["deploymentSpec"]["executors"][label]["container"]
        own = self.platform[label]
        given = json.dumps(self.executor_input(task, outputs))
        args = [given if word == "{{$}}" else word for word in container["args"]]
        volumes: dict[str, tuple[str, dict[str, Any]]] = {
            "scratch": ("/tmp", {"emptyDir": {}}),
            "artifacts": ("/s3", {"emptyDir": {}}),
        }
        for mount in own.get("pvcMount", ()):
            claim = self.parameters[mount["pvcNameParameter"]["componentInputParameter"].split("--")[-1]]
            volumes["claim"] = (mount["mountPath"], {"persistentVolumeClaim": {"claimName": claim}})
        for number, mount in enumerate(own.get("secretAsVolume", ())):
            secret = self.parameters[mount["secretNameParameter"]["componentInputParameter"].split("--")[-1]]
            source = {"secret": {"secretName": secret, "optional": mount["optional"]}}
            volumes[f"secret-{number}"] = (mount["mountPath"], source)
        for number, mount in enumerate(own.get("configMapAsVolume", ())):
            source_name = mount["configMapNameParameter"]
            key = source_name.get("componentInputParameter", "").split("--")[-1]
            map_name = self.parameters[key] if key else source_name["runtimeValue"]["constant"]
            source = {"configMap": {"name": map_name, "optional": mount["optional"]}}
            volumes[f"map-{number}"] = (mount["mountPath"], source)
        field = {"KFP_POD_NAME": "metadata.name", "KFP_POD_UID": "metadata.uid"}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"pipeline/runid": "kfp-run-1"}},
            "spec": {
                "serviceAccountName": "stageline-launcher",
                "restartPolicy": "Never",
                "containers": [
                    {
                        "name": "main",
                        "image": self.parameters["launcher_image"],
                        "imagePullPolicy": own["imagePullPolicy"],
                        "command": ["sh", "-c", SHOW, "step", *container["command"]],
                        "args": args,
                        "env": [
                            {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}
                            for variable, path in field.items()
                        ],
                        "resources": {
                            "requests": {
                                "cpu": container["resources"]["resourceCpuRequest"],
                                "memory": container["resources"]["resourceMemoryRequest"],
                            }
                        },
                        "securityContext": {
                            **own["securityContext"],
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                            "seccompProfile": {"type": "RuntimeDefault"},
                        },
                        "volumeMounts": [{"name": key, "mountPath": path} for key, (path, _) in volumes.items()],
                    }
                ],
                "volumes": [{"name": key, **source} for key, (_, source) in volumes.items()],
            },
        }


def run_step(kubectl: Kubectl, namespace: str, pod: Mapping[str, Any], seconds: int = 400) -> tuple[str, int]:
    """Run a step's pod to its end; returns (its log, its exit code)."""
    name = str(pod["metadata"]["name"])
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(pod))
    end = "{.status.containerStatuses[0].state.terminated.exitCode}"
    kubectl(
        "-n", namespace, "wait", f"--for=jsonpath={end}", f"pod/{name}", f"--timeout={seconds}s", seconds=seconds + 30
    )
    log = kubectl("-n", namespace, "logs", name, check=False)
    return log, int(kubectl("-n", namespace, "get", "pod", name, "-o", f"jsonpath={end}"))


def outputs_of(log: str) -> dict[str, Any]:
    """The executor output that a step left."""
    found: dict[str, Any] = json.loads(log.partition("@@outputs\n")[2])
    return found

"""What the chart makes: fields Kubernetes knows, pods `restricted` admits, rights with a reason, valid defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from stageline.config import validate
from stageline.config.cluster import ClusterConfig
from stageline.jobs.defaults import parse_defaults
from stageline.kube.rights import RULES

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/stageline"
SETS = ["", *sorted(path.stem.removesuffix("-values") for path in (CHART / "ci").glob("*-values.yaml"))]
SERVED = (
    "--api-versions",
    "monitoring.coreos.com/v1/PodMonitor",
    "--api-versions",
    "kueue.x-k8s.io/v1beta1/LocalQueue",
)
COST_CENTERS = {"existing": ("imaging",), "company": ("imaging", "platform")}
"""Value set -> values of the label that it gives."""
CLUSTER_WIDE = (*("PriorityClass", "ClusterRole", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),)
COMPONENT = "app.kubernetes.io/component"
Documents = list[dict[str, Any]]
Render = Callable[..., Documents]


def pick(documents: Documents, kind: str, namespace: str = "stageline", component: str = "") -> dict[str, Any]:
    """The chart's only object of that kind, in that namespace where it has one. component: "" for any but kfp's."""
    kinds = [d for d in documents if d["kind"] == kind]
    parts = [(d, d["metadata"]["labels"][COMPONENT]) for d in kinds]
    own = [d for d, part in parts if (part == component if component else part not in ("extra", "kfp"))]
    found = [d for d in own if d["metadata"].get("namespace", namespace) == namespace]
    assert len(found) == 1, [(d["kind"], d["metadata"]["name"]) for d in found]
    return found[0]


def unknown_fields(value: Any, type_name: str, where: str) -> Iterator[str]:
    """Fields of `value` that the type of the Kubernetes client does not have, at any depth."""
    inner = re.fullmatch(r"(?:list\[|dict\(str, )(.+)[\])]", type_name)
    if inner:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from unknown_fields(item, inner[1], f"{where}.{key}")
        return
    model = getattr(import_module("kubernetes.client"), type_name, None)
    if model is None:  # a plain value
        kinds = {"str": str, "int": int, "bool": bool}
        if type_name in kinds and type(value) is not kinds[type_name]:
            yield f"{where}: {value!r} is no {type_name}"
        return
    if not isinstance(value, dict):
        yield f"{where}: {value!r} is no {type_name}"
        return
    names = {spelled: name for name, spelled in model.attribute_map.items()}
    for key, item in value.items():
        if key in names:
            yield from unknown_fields(item, model.openapi_types[names[key]], f"{where}.{key}")
        else:
            yield f"{where}.{key}: no field of {type_name}"


@pytest.mark.parametrize("values", SETS)
def test_every_object_is_one_that_kubernetes_knows(render: Render, values: str) -> None:
    documents = render(values)
    assert documents
    faults = []
    for document in documents:
        version = document["apiVersion"].rpartition("/")[2].capitalize()
        faults += list(unknown_fields(document, f"{version}{document['kind']}", document["kind"]))
    assert faults == []


def test_the_check_above_sees_a_wrong_field_and_a_wrong_type() -> None:
    pod = {"spec": {"containers": [{"name": "a", "image": 1, "ressources": {}}], "hostNetwork": "no"}}
    assert len(list(unknown_fields(pod, "V1Pod", "Pod"))) == 3


@pytest.mark.parametrize("values", SETS)
def test_objects_are_labelled_and_lie_in_the_job_namespaces(render: Render, values: str) -> None:
    spaces = {"team-a", "team-b"} if values == "existing" else {"stageline"}
    names = []
    for document in render(values, *SERVED):
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == labels["app.kubernetes.io/part-of"] == "stageline"
        assert {"helm.sh/chart", *(f"app.kubernetes.io/{key}" for key in ("instance", "version", "component"))} <= set(
            labels
        )
        assert all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value) for value in labels.values())
        assert labels.get("cost-center") in COST_CENTERS.get(values, (None,))
        anywhere = document["kind"] in CLUSTER_WIDE or labels[COMPONENT] == "extra"
        assert document["metadata"].get("namespace") in ({None} if anywhere else spaces)
        names.append((document["kind"], document["metadata"]["name"], document["metadata"].get("namespace")))
    assert len(set(names)) == len(names)


# Pod security ------------------------------------------------------------------------------------------------------


def restricted_faults(spec: dict[str, Any]) -> list[str]:
    """Why the pod security standard `restricted` (v1.33) would refuse this pod."""
    pod = spec.get("securityContext", {})
    faults = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    kinds = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    faults += [f"volume {v['name']}" for v in spec.get("volumes", []) if not set(v) - {"name"} <= kinds]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        own = container.get("securityContext", {})
        both = {**pod, **own}
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            faults.append(f"{container['name']} may gain privileges")
        capabilities = own.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            faults.append(f"{container['name']} keeps capabilities")
        if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
            faults.append(f"{container['name']} may be root")
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            faults.append(f"{container['name']} has no seccomp profile")
        if any("hostPort" in port for port in container.get("ports", [])):
            faults.append(f"{container['name']} takes a port of the node")
    return faults


@pytest.mark.parametrize("values", SETS)
def test_pods_pass_restricted_and_write_to_scratch_only(render: Render, values: str) -> None:
    for document in render(values):
        if document["kind"] == "Pod":
            spec = document["spec"]
            assert restricted_faults(spec) == []
            assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
            assert {kind for volume in spec["volumes"] for kind in volume} == {"name", "emptyDir", "configMap"}
            assert document["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_the_check_above_refuses_a_plain_pod() -> None:
    assert len(restricted_faults({"containers": [{"name": "a"}], "volumes": [{"name": "b", "hostPath": {}}]})) == 5


def test_nothing_in_the_chart_runs_unless_it_is_a_test(render: Render) -> None:
    kinds = {document["kind"] for values in SETS for document in render(values, *SERVED, "--no-hooks")}
    assert not kinds & {"Pod", "Job", "CronJob", "Deployment", "StatefulSet", "DaemonSet", "PyTorchJob"}


# Accounts and rights -----------------------------------------------------------------------------------------------


def rights(role: dict[str, Any]) -> dict[tuple[str, str, str], list[str]]:
    """(group, resource, name) -> verbs."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    key = (group, resource, name)
                    found[key] = sorted([*found.get(key, []), *rule["verbs"]])
    return found


def table(*parts: str) -> dict[tuple[str, str, str], list[str]]:
    """The list of rights of some parts; a new one needs its reason in templates/roles.yaml."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for rule in RULES:
        if rule.part in parts:
            key = (rule.group, rule.resource, rule.name)
            found[key] = sorted([*found.get(key, []), *rule.verbs])
    return found


def test_the_launcher_has_exactly_the_rights_that_it_uses(render: Render) -> None:
    assert rights(pick(render(), "Role")) == table("launch", "network", "doctor")
    assert rights(pick(render("bare"), "Role")) == table("launch", "network")
    secret = {("", "secrets", "artifacts"): ["get"]}
    assert rights(pick(render("made"), "Role", component="kfp")) == {**table("kfp"), **secret}
    assert not [d for d in render() if d["metadata"]["labels"][COMPONENT] == "kfp"], "only where it is asked for"
    clusterwide = {values for values in SETS for d in render(values) if d["kind"].startswith("Cluster")}
    assert clusterwide == {"company"}, "only where it is asked for"
    assert not [d for d in render("cloud-identity") if d["kind"] in ("Role", "RoleBinding")]


def test_no_right_is_wide(render: Render) -> None:
    """No stars, nothing that makes pods or reads Secrets at large, and nothing that changes rights."""
    found = {**rights(pick(render("made"), "Role")), **rights(pick(render("made"), "Role", component="kfp"))}
    for group, resource, name in found:
        assert "*" not in (group, resource, *found[group, resource, name])
        assert resource != "secrets" or name
        assert group != "rbac.authorization.k8s.io"
        assert resource not in ("pods", "pods/exec") or not {"create", "delete"} & set(found[group, resource, name])


def test_every_rule_says_why() -> None:
    for name, least in (("roles", 8), ("kfp-role", 3)):
        lines = (CHART / f"templates/{name}.yaml").read_text().splitlines()
        rules = [number for number, line in enumerate(lines) if line.startswith("  - apiGroups:")]
        assert len(rules) >= least
        for number in rules:
            assert lines[number - 1].startswith("  # "), lines[number + 1]


def test_training_pods_have_an_account_without_token_and_rights(render: Render) -> None:
    for values in SETS:
        for document in render(values):
            if document["kind"] == "ServiceAccount":
                trainer = document["metadata"]["labels"][COMPONENT] == "trainer"
                assert document["automountServiceAccountToken"] is not trainer
            if document["kind"] == "RoleBinding":
                names = {subject["name"] for subject in document["subjects"]}
                assert not names & {"stageline-trainer", "imaging-trainer", "default-trainer", "default"}


def test_existing_accounts_are_bound_and_not_made(render: Render) -> None:
    documents = render("existing")
    assert not [d for d in documents if d["kind"] in ("ServiceAccount", "PersistentVolumeClaim", "Secret")]
    for namespace in ("team-a", "team-b"):
        subjects = pick(documents, "RoleBinding", namespace)["subjects"]
        assert subjects[0] == {"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": namespace}
        assert [subject["name"] for subject in subjects[1:]] == ["imaging", "robot"]


def test_accounts_take_a_cloud_identity(render: Render) -> None:
    accounts = {d["metadata"]["name"]: d for d in render("made") if d["kind"] == "ServiceAccount"}
    assert "eks.amazonaws.com/role-arn" in accounts["stageline-launcher"]["metadata"]["annotations"]
    assert "iam.gke.io/gcp-service-account" in accounts["stageline-trainer"]["metadata"]["annotations"]
    assert accounts["stageline-trainer"]["imagePullSecrets"] == [{"name": "registry"}]


# Storage and defaults ----------------------------------------------------------------------------------------------


def test_nothing_is_stored_by_default_and_a_claim_outlives_the_release(render: Render) -> None:
    assert not [d for d in render() if d["kind"] in ("PersistentVolumeClaim", "Secret")]
    claim = pick(render("made"), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    keys = pick(render("made"), "Secret")["stringData"]
    assert keys == {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "only: for\ttests",
        "AWS_SESSION_TOKEN": "1",
    }


def defaults(documents: Documents, namespace: str = "stageline", key: str = "cluster.yaml") -> dict[str, Any]:
    """The keys of a stageline config that the ConfigMap gives, read as stageline reads them."""
    return parse_defaults(pick(documents, "ConfigMap", namespace)["data"][key], key)


@pytest.mark.parametrize("values", SETS)
def test_the_defaults_are_a_valid_section_of_a_config(render: Render, values: str) -> None:
    namespace = "team-b" if values == "existing" else "stageline"
    for key in ("cluster.yaml",) if values == "bare" else ("cluster.yaml", "trial.yaml"):
        cluster = validate(defaults(render(values), namespace, key)["cluster"], ClusterConfig, key)
        assert cluster.namespace == namespace
        assert cluster.image


def test_the_defaults_say_what_the_values_say(render: Render) -> None:
    assert defaults(render())["cluster"] == {
        "namespace": "stageline",
        "image": "stageline/trainer:0.1.0",
        "image_pull_policy": "IfNotPresent",
        "service_account": "stageline-trainer",
    }
    existing = defaults(render("existing"), "team-a")
    assert existing["root"] == "/data"
    assert existing["cluster"]["image"].startswith("registry.example.com:5000/stageline/trainer@sha256:")
    assert existing["cluster"]["service_account"] == "default-trainer"
    assert existing["cluster"]["storage"] == {
        "claim": "shared-data",
        "mount_path": "/data",
        "sub_path": "teams/imaging",
        "s3": {"secret": "store-keys", "endpoint": "https://minio.example.com:9000", "path_style": True},
    }
    made = defaults(render("made"))
    assert made["root"] == "s3://imaging/stageline"
    assert made["cluster"]["storage"]["claim"] == "runs"
    assert made["cluster"]["storage"]["s3"]["secret"] == "stageline-s3"  # noqa: S105
    assert made["cluster"]["storage"]["s3"]["ca_key"] == "root.pem"
    assert made["cluster"]["ttl_seconds"] == 1_000_000
    assert made["cluster"]["priority_class"] == "stageline-low"
    identity = defaults(render("cloud-identity"))["cluster"]["storage"]
    assert identity == {"s3": {"region": "eu-central-1", "path_style": False}}


def test_the_trial_starts_from_the_defaults_with_resources_of_its_own(render: Render) -> None:
    usual = defaults(render("made"))["cluster"]
    trial = defaults(render("made"), key="trial.yaml")["cluster"]
    assert trial["resources"] == {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "4Gi"}}
    assert trial["node_selector"] == {"pool": "cpu"}
    assert trial["tolerations"] == [{"key": "cpu", "operator": "Exists"}]
    assert trial["deadline_seconds"] == 900
    assert trial["ttl_seconds"] == 3600, "a trial that failed is not kept for days"
    own = {"resources", "node_selector", "tolerations", "deadline_seconds", "ttl_seconds"}
    assert {k: v for k, v in trial.items() if k not in own} == {k: v for k, v in usual.items() if k not in own}


# Optional objects --------------------------------------------------------------------------------------------------


def test_objects_of_others_appear_only_where_their_kind_is_served(render: Render) -> None:
    optional = {"PodMonitor", "LocalQueue"}
    assert not {d["kind"] for d in render("operators")} & optional
    assert not {d["kind"] for d in render("", *SERVED)} & optional
    served = render("operators", *SERVED)
    assert {d["kind"] for d in served} >= optional
    assert pick(served, "LocalQueue")["spec"] == {"clusterQueue": "gpus"}
    assert defaults(served)["cluster"]["queue"] == "train"
    monitor = pick(served, "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "metrics", "path": "/metrics", "interval": "30s"}]


def test_no_policy_of_the_chart_admits_anybody_to_a_job(render: Render) -> None:
    """Policies add up: what one of the chart admits, no job's own could refuse."""
    policies = [d for values in SETS for d in render(values) if d["kind"] == "NetworkPolicy"]
    assert policies
    for policy in policies:
        assert set(policy["spec"]) == {"podSelector", "policyTypes"}
        assert policy["spec"]["policyTypes"] == ["Ingress"]
    trial = pick(render(), "Pod")["metadata"]["labels"]
    (expression,) = pick(render(), "NetworkPolicy")["spec"]["podSelector"]["matchExpressions"]
    assert trial[expression["key"]] in expression["values"]
    assert not [d for d in render("", "--set", "cluster.network_policy=off") if d["kind"] == "NetworkPolicy"]


def test_what_a_jobs_policy_admits_is_a_default_of_the_namespace(render: Render) -> None:
    assert defaults(render("made"))["cluster"]["network"] == {
        "limit_egress": True,
        "store_ports": [443, 7070],
        "metrics_from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 2049, "protocol": "TCP"}]}],
    }
    named = defaults(render("", "--set", "networkPolicy.metricsFrom={monitoring},networkPolicy.identityEndpoints=true"))
    assert named["cluster"]["network"] == {"metrics_from": ["monitoring"]}, "egress is not limited"
    limited = "networkPolicy.limitEgress=true,networkPolicy.identityEndpoints=true,cluster.network_policy=require"
    cluster = validate(defaults(render("", "--set", limited))["cluster"], ClusterConfig, "cluster")
    assert (cluster.network_policy, cluster.network.identity_endpoints) == ("require", True)


def test_limits_are_made_from_values(render: Render) -> None:
    documents = render("made")
    assert pick(documents, "PriorityClass")["value"] == 1_000_000
    assert pick(documents, "ResourceQuota")["spec"]["hard"] == {"requests.nvidia.com/gpu": "16", "pods": "40"}
    assert pick(documents, "LimitRange")["spec"]["limits"][0]["type"] == "Container"


# The chart as text -------------------------------------------------------------------------------------------------


def test_the_chart_looks_nothing_up_and_pins_what_it_names(render: Render) -> None:
    for template in (CHART / "templates").rglob("*"):
        if template.is_file():
            assert not re.search(r"\blookup\b|randAlpha|genCA|\bnow\b", template.read_text()), template
    images = [c["image"] for v in SETS for d in render(v) if d["kind"] == "Pod" for c in d["spec"]["containers"]]
    assert images
    assert not [image for image in images if image.endswith(":latest") or not re.search(r":[\w.]+$", image)]


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = re.search(r'(?m)^version = "(.+)"$', (ROOT / "pyproject.toml").read_text())
    assert project is not None
    assert chart["appVersion"] == chart["version"] == project[1]
    assert chart["kubeVersion"] == ">=1.29.0-0"

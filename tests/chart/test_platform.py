"""What platform teams ask of a chart: users, mirror, names, labels, objects of their own, upgrades without surprise."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from stageline.config import validate
from stageline.config.cluster import ClusterConfig
from stageline.jobs.cluster.render.pytorchjob import USER_FIELDS
from stageline.jobs.defaults import parse_defaults

from .test_objects import CHART, COMPONENT, ROOT, SERVED, SETS, Documents, Render, pick

KFP_OBJECTS = [("Role", "stageline-kfp"), ("RoleBinding", "stageline-kfp")]
"""What an installation with the values of before has beyond the defaults of now."""
Helm = Callable[..., subprocess.CompletedProcess[str]]
PREVIOUS = Path(__file__).parent / "previous-values.yaml"
"""values.yaml as the chart had it before."""


def of_chart(documents: Documents) -> Documents:
    """Without the objects that a value set brings along."""
    return [d for d in documents if d["metadata"]["labels"][COMPONENT] != "extra"]


def plain_defaults(documents: Documents, key: str = "cluster.yaml") -> dict[str, Any]:
    """What the ConfigMap gives, read as stageline reads it."""
    return parse_defaults(pick(documents, "ConfigMap")["data"][key], key)


# OpenShift ---------------------------------------------------------------------------------------------------------


def test_the_cluster_chooses_the_users_of_all_pods_where_none_is_named(render: Render) -> None:
    documents = render("company")
    context = pick(documents, "Pod")["spec"]["securityContext"]
    assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for key in ("cluster.yaml", "trial.yaml"):
        cluster = plain_defaults(documents, key)["cluster"]
        assert cluster["run_as_user"] is None
        assert validate(cluster, ClusterConfig, key).run_as_user is None


def test_the_trial_has_the_user_of_the_jobs(render: Render) -> None:
    assert {pick(render(), "Pod")["spec"]["securityContext"][key] for key in USER_FIELDS} == {1000}
    chosen = render("", "--set", "cluster.run_as_user=1234567")
    assert {pick(chosen, "Pod")["spec"]["securityContext"][key] for key in USER_FIELDS} == {1234567}
    assert plain_defaults(chosen, "trial.yaml")["cluster"]["run_as_user"] == 1234567


# Images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("registry.example.com:5000/team/trainer", "mirror.example.com/a/team/trainer:0.1.0"),
        ("localhost/trainer", "mirror.example.com/a/trainer:0.1.0"),
        ("stageline/trainer", "mirror.example.com/a/stageline/trainer:0.1.0"),
        ("trainer", "mirror.example.com/a/trainer:0.1.0"),
    ],
)
def test_a_mirror_takes_the_place_of_the_registry(render: Render, repository: str, expected: str) -> None:
    sets = f"global.imageRegistry=mirror.example.com/a,images.trainer.repository={repository}"
    assert plain_defaults(render("", "--set", sets))["cluster"]["image"] == expected


def test_pull_secrets_of_all_charts_and_of_this_one_are_each_named_once(render: Render) -> None:
    documents = render("company")
    expected = ["mirror", "second"]
    assert plain_defaults(documents)["cluster"]["pull_secrets"] == expected
    named = [d["imagePullSecrets"] for d in documents if d["kind"] == "ServiceAccount"]
    named.append(pick(documents, "Pod")["spec"]["imagePullSecrets"])
    assert named == [[{"name": name} for name in expected]] * 3
    images = [c["image"] for c in pick(documents, "Pod")["spec"]["containers"]]
    assert images == ["mirror.example.com/proxy/stageline/launcher:0.1.0"]


def test_an_umbrella_chart_may_have_globals_that_mean_nothing_here(helm: Helm) -> None:
    assert helm("template", "stageline", "helm/stageline", "--set", "global.storageClass=fast").returncode == 0


# Labels, annotations, objects --------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", SETS)
def test_common_labels_and_annotations_are_on_every_object_once(render: Render, values: str) -> None:
    """The fixture refuses a key that stands twice."""
    sets = "labels.team=a,annotations.example\\.com/note=b,podMonitor.labels.team=c"
    given = render(values, "--set", sets, *SERVED)
    assert given
    for document in given:
        metadata = document["metadata"]
        assert metadata["labels"]["team"] == ("c" if document["kind"] == "PodMonitor" else "a")
        assert metadata["annotations"]["example.com/note"] == "b"


def test_what_one_kind_of_object_says_wins_over_what_all_say(render: Render) -> None:
    owners = {d["metadata"]["name"]: d["metadata"]["annotations"]["example.com/owner"] for d in render("company")}
    assert owners["imaging-trainer"] == owners["stageline"] == "store"
    assert owners["imaging"] == owners["imaging-trial"] == "imaging"
    claim = pick(render("company"), "PersistentVolumeClaim")["metadata"]["annotations"]
    assert claim["helm.sh/resource-policy"] == "keep"
    empty = "labels.team=a,podMonitor.enabled=true,podMonitor.labels.team="
    assert pick(render("", "--set", empty, *SERVED), "PodMonitor")["metadata"]["labels"]["team"] == "", (
        "an empty one too"
    )


BAD = {
    "labels.app\\.kubernetes\\.io/name=mine": "app.kubernetes.io/name",
    "labels.team=no spaces": "/labels/team",
    "labels.-team=a": "-team",
    "podMonitor.labels.helm\\.sh/chart=mine": "helm.sh/chart",
    "labels.rbac\\.authorization\\.k8s\\.io/aggregate-to-view=yes": "aggregate-to-view",
    "annotations.helm\\.sh/hook=test": "helm.sh/hook",
    "annotations.team=1": "/annotations/team",
    "storage.claim.annotations.helm\\.sh/resource-policy=delete": "helm.sh/resource-policy",
    "trainer.serviceAccount.annotations.meta\\.helm\\.sh/release-name=a": "meta.helm.sh/release-name",
    "global.imageRegistry=https://mirror": "/global/imageRegistry",
    "global.imagePullSecrets={A}": "/global/imagePullSecrets/0",
    "nameOverride=Upper": "/nameOverride",
    "extraObjects[0].kind=ConfigMap": "/extraObjects/0",
}


def test_labels_and_names_that_would_not_do_are_refused_all_at_once(helm: Helm) -> None:
    result = helm("template", "stageline", "helm/stageline", *(part for bad in BAD for part in ("--set", bad)))
    assert result.returncode != 0
    assert [setting for setting, words in BAD.items() if words not in result.stderr] == []


def test_objects_of_ones_own_are_taken_as_they_are_or_as_a_template(render: Render) -> None:
    extra = {d["metadata"]["name"]: d for d in render("company") if d["metadata"]["labels"][COMPONENT] == "extra"}
    assert extra["company-ca"]["data"] == {"ca.crt": "{{ not a template }}"}
    assert extra["company-ca"]["metadata"]["labels"]["cost-center"] == "platform"
    assert extra["stageline-notes"]["data"] == {"namespace": "stageline"}


SEVERAL = """# first
apiVersion: v1
kind: ConfigMap
metadata: {name: one}
--- # second
apiVersion: v1
kind: ConfigMap
metadata: {name: two, labels: null}
---
"""


def test_a_text_makes_all_its_objects_or_none_and_what_an_object_says_of_itself_wins(render: Render) -> None:
    own = {"app.kubernetes.io/name": "proxy", "team": ""}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "three", "labels": own}, "spec": {}}
    given = json.dumps([SEVERAL, "{{ if .Values.kfp.enabled }}a: b{{ end }}", service])
    documents = render("", "--set-json", f"extraObjects={given}", "--set", "labels.team=a")
    extra = [d for d in documents if d["metadata"]["labels"][COMPONENT] == "extra"]
    assert [d["metadata"]["name"] for d in extra] == ["one", "two", "three"]
    labels = [d["metadata"]["labels"] for d in extra]
    assert [{key: each[key] for key in own} for each in labels[:2]] == [
        {"app.kubernetes.io/name": "stageline", "team": "a"}
    ] * 2
    assert {key: labels[2][key] for key in own} == own
    assert extra[2]["spec"] == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is no YAML object"),
        ("kind: A", "needs apiVersion, kind"),
        ("{apiVersion: v1, kind: A, metadata: a}", "needs apiVersion, kind"),
        (f"{SEVERAL}kind: A", "needs apiVersion, kind"),
    ],
)
def test_an_object_that_is_none_is_refused_by_its_place(helm: Helm, text: str, said: str) -> None:
    given = json.dumps([text])
    result = helm("template", "stageline", "helm/stageline", "--set-json", f"extraObjects={given}")
    assert result.returncode != 0
    assert f"extraObjects[0] {said}" in result.stderr


# Names -------------------------------------------------------------------------------------------------------------


def test_another_name_reaches_every_object_and_whoever_reads_them(render: Render) -> None:
    documents = of_chart(render("company", "--set", "resourceQuota.hard.pods=1"))
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    claim = ("PersistentVolumeClaim", "stageline")
    assert [name for name in names - {claim} if not name[1].startswith("imaging")] == [], "its own value names a claim"
    config_map = pick(documents, "ConfigMap")
    assert config_map["metadata"]["name"] == "imaging"
    assert config_map["data"]["launcher_service_account"] == "imaging-launcher"
    cluster = plain_defaults(documents)["cluster"]
    assert (cluster["defaults"], cluster["service_account"]) == ("imaging", "imaging-trainer")
    role = pick(documents, "Role")
    assert ["imaging"] in [rule.get("resourceNames") for rule in role["rules"] if rule["resources"] == ["configmaps"]]
    assert pick(documents, "RoleBinding")["roleRef"]["name"] == role["metadata"]["name"]
    assert pick(documents, "RoleBinding")["subjects"][0]["name"] == "imaging-launcher"
    (volume,) = [v for v in pick(documents, "Pod")["spec"]["volumes"] if v["name"] == "defaults"]
    assert volume["configMap"]["name"] == "imaging"


def test_two_releases_under_two_names_share_no_object(render: Render) -> None:
    def names(*arguments: str) -> set[tuple[str, str]]:
        made = render("made", *arguments, "--set", "priorityClass.create=false,rbac.aggregate=true", *SERVED)
        return {(d["kind"], d["metadata"]["name"]) for d in made} - {("PersistentVolumeClaim", "runs")}

    assert not names() & names("--set", "nameOverride=second")


# Rights of people --------------------------------------------------------------------------------------------------


def test_view_and_edit_learn_about_jobs_where_it_is_asked_for(render: Render) -> None:
    roles = {d["metadata"]["name"]: d for d in render("company") if d["kind"] == "ClusterRole"}
    aggregated = "rbac.authorization.k8s.io/aggregate-to-"
    for word, verbs in (("view", ["get", "list", "watch"]), ("edit", ["create", "patch", "delete"])):
        role = roles.pop(f"imaging-stageline-{word}")
        assert {key for key in role["metadata"]["labels"] if key.startswith(aggregated)} == {f"{aggregated}{word}"}
        assert role["rules"] == [{"apiGroups": ["kubeflow.org"], "resources": ["pytorchjobs"], "verbs": verbs}]
    assert roles == {}


# Claims, trials, notes ---------------------------------------------------------------------------------------------


def notes(helm: Helm, *arguments: str) -> str:
    result = helm("install", "stageline", "helm/stageline", "-n", "imaging", "--dry-run=client", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.partition("NOTES:")[2]


def test_a_kept_claim_can_be_taken_up_again(render: Render, helm: Helm) -> None:
    """Under the same release name helm adopts it, for what it writes names neither volume nor class unless told to."""
    claim = pick(render("", "--set", "storage.claim.create=true"), "PersistentVolumeClaim")
    assert set(claim["spec"]) == {"accessModes", "resources"}
    assert pick(render("company"), "PersistentVolumeClaim")["spec"]["volumeName"] == "kept"
    volume = "storage.claim.create=true,storage.claim.volumeName=kept,storage.claim.storageClassName=-"
    assert pick(render("", "--set", volume), "PersistentVolumeClaim")["spec"]["storageClassName"] == "", "it has none"
    said = notes(helm, "--set", "storage.claim.create=true")
    for way in ("by itself under the name stageline", "--take-ownership", "storage.existingClaim=stageline"):
        assert way in said
    assert "--take-ownership" not in notes(helm)


def test_a_trial_that_succeeded_leaves_nothing_and_one_that_failed_until_the_next(render: Render) -> None:
    annotations = pick(render(), "Pod")["metadata"]["annotations"]
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    assert plain_defaults(render(), "trial.yaml")["cluster"]["ttl_seconds"] == 3600
    owned = {entry["name"] for entry in pick(render(), "Pod")["spec"]["containers"][0]["env"]}
    assert {"KFP_POD_NAME", "KFP_POD_UID"} <= owned, "the job belongs to the pod, and goes with it"


def test_every_object_that_a_missing_kind_leaves_out_is_named_in_the_notes(helm: Helm) -> None:
    guarded = {
        api
        for template in (CHART / "templates").glob("*.yaml")
        for api in re.findall(r'APIVersions\.Has "([\w.-]+/\w+/\w+)"', template.read_text())
    }
    assert len(guarded) >= 2
    said = notes(helm, "-f", "helm/stageline/ci/operators-values.yaml")
    for api in guarded:
        version, _, kind = api.rpartition("/")
        assert re.search(rf"No {kind} was made: this cluster does not serve {version}", said), api


def test_the_notes_say_the_name_to_whoever_submits(helm: Helm) -> None:
    said = notes(helm, "--set", "nameOverride=second")
    assert "stageline doctor -c config.yaml cluster.defaults=second" in said
    assert "kubectl get configmap second -n imaging" in said
    assert "cluster.defaults" not in notes(helm)


def test_the_notes_say_what_network_policies_ask_for(helm: Helm) -> None:
    metrics, renamed = "name its namespace in networkPolicy.metricsFrom", "has the name networkPolicy.limitEgress"
    said = notes(helm, "--set", "podMonitor.enabled=true,networkPolicy.enabled=true")
    assert metrics in said
    assert renamed in said
    said = notes(helm, "--set", "podMonitor.enabled=true,networkPolicy.metricsFrom={monitoring}")
    assert metrics not in said
    assert renamed not in said
    assert metrics not in notes(helm, "--set", "podMonitor.enabled=true,cluster.network.metrics_from={monitoring}")


# Metrics -----------------------------------------------------------------------------------------------------------


def test_one_switch_makes_pods_serve_metrics_and_has_them_read(render: Render) -> None:
    served = render("operators", *SERVED)
    assert plain_defaults(served)["trainer"] == {"metrics_port": 9400}
    assert pick(served, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"
    assert "trainer" not in plain_defaults(served, "trial.yaml"), "a trial's pod serves none"
    assert "trainer" not in plain_defaults(render())
    assert plain_defaults(render("operators", "--set", "podMonitor.port=9500"))["trainer"] == {"metrics_port": 9500}


# The chart itself --------------------------------------------------------------------------------------------------


def test_the_chart_says_who_keeps_it_and_shows_an_icon() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["home"].startswith("https://")
    assert [sorted(entry) for entry in chart["maintainers"]] == [["name", "url"]]
    head, _, data = chart["icon"].partition("base64,")
    assert head == "data:image/svg+xml;"
    assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")  # noqa: S314  # our own


def test_value_sets_are_named_as_chart_testing_finds_them() -> None:
    assert [path.name for path in (CHART / "ci").iterdir() if not path.name.endswith("-values.yaml")] == []


@pytest.mark.parametrize("way", ["given anew", "reused"])
def test_an_upgrade_from_the_previous_values_changes_only_what_is_new(
    helm: Helm, render: Render, tmp_path: Path, way: str
) -> None:
    """`-f` puts the old values on top of the new ones; `--reuse-values` takes them instead, new keys being absent."""
    chart: Path | str = "helm/stageline"
    if way == "reused":
        chart = tmp_path / "stageline"
        shutil.copytree(CHART, chart)
        shutil.copy(PREVIOUS, chart / "values.yaml")
    values = ("-f", PREVIOUS) if way == "given anew" else ()
    result = helm("template", "stageline", chart, "-n", "stageline", *values)
    assert result.returncode == 0, result.stderr
    made = [d for d in yaml.safe_load_all(result.stdout) if d]
    assert made == render("", "--set", "kfp.enabled=true")
    more = [d for d in made if d not in render()]
    assert [(d["kind"], d["metadata"]["name"]) for d in more] == KFP_OBJECTS, "off by default now, as the notes say"
    assert str(ROOT) not in result.stdout


def test_an_upgrade_from_a_limited_network_takes_the_rule_for_all_jobs_away_and_limits_each(
    render: Render, tmp_path: Path
) -> None:
    """The one difference that is meant: `networkPolicy.enabled` made a rule by which all jobs reached each other."""
    old = yaml.safe_load(PREVIOUS.read_text())
    old["networkPolicy"]["enabled"] = True
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(old))
    before, after = render("", "--set", "kfp.enabled=true"), render("", "-f", str(tmp_path / "values.yaml"))
    differing = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert [a["kind"] for a, _ in differing] == ["ConfigMap"]
    for key in ("cluster.yaml", "trial.yaml"):
        usual, limited = plain_defaults(before, key)["cluster"], plain_defaults(after, key)["cluster"]
        assert limited == {**usual, "network": {"limit_egress": True, "store_ports": [443]}}
    assert pick(after, "NetworkPolicy")["metadata"]["name"] == "stageline-launchers"


def test_no_policy_of_names_where_kubernetes_has_none_and_the_notes_say_so(helm: Helm, render: Render) -> None:
    asked = ("--set", "namePolicy.enabled=true")
    assert not [d for d in render("", *asked, "--kube-version", "1.29.4") if d["kind"].startswith("Validating")]
    assert [d for d in render("", *asked, "--kube-version", "1.30.0") if d["kind"].startswith("Validating")]
    assert "No ValidatingAdmissionPolicy" not in notes(helm, *asked)
    said = '{{- if and (.Values.namePolicy).enabled (not (include "stageline.namePolicy" .)) }}\n\nNo Validating'
    assert said in (CHART / "templates/NOTES.txt").read_text(), (
        "helm takes no version of Kubernetes where it shows notes"
    )
    assert "name_prefix" not in plain_defaults(render())["cluster"]


def test_whoever_upgrades_is_told_that_steps_of_pipelines_lack_rights_now(helm: Helm) -> None:
    """The default turned: with `--reset-then-reuse-values` nobody typed it."""
    command = "--reset-then-reuse-values --set kfp.enabled=true"
    said = notes(helm)
    assert "Steps of Kubeflow Pipelines lack the rights that KFP itself needs" in said
    assert command in said
    assert "Steps of Kubeflow" not in notes(helm, "--set", "kfp.enabled=true")
    assert "`kfp.enabled` is off by default" in (ROOT / "CHANGELOG.md").read_text()

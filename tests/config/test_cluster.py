"""The section `cluster`: every key checked, all faults at once, overridable per stage, never part of a fingerprint."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageline.config import ClusterConfig, RunConfig, apply_overrides, fingerprint, identity, json_schema, semantic
from stageline.config import validate as validate_config
from stageline.config.syntax import quantity_value
from stageline.config.variables import is_secret_name
from stageline.errors import ConfigError
from stageline.stage import Stage, stage_config, stage_settings


def cluster(**raw: Any) -> ClusterConfig:
    return validate_config(raw, ClusterConfig, "cluster")


def run(*overrides: str, **raw: Any) -> RunConfig:
    return validate_config(apply_overrides({"family": "x", **raw}, overrides, RunConfig), RunConfig, "config")


def faults(**raw: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        cluster(**raw)
    return str(caught.value)


def test_the_defaults_are_legal_and_every_key_has_a_place_in_the_schema() -> None:
    assert cluster() == ClusterConfig()
    schema = json_schema(ClusterConfig)
    assert set(schema["properties"]) == set(ClusterConfig.model_fields)
    json.dumps(schema)


def test_nothing_of_it_belongs_to_a_fingerprint_or_an_identity() -> None:
    plain, changed = (
        run(),
        run("cluster.image=a/b:1", "cluster.resources.limits.nvidia.com/gpu=1", "cluster.env.NCCL_DEBUG=b"),
    )
    assert fingerprint(semantic(plain)) == fingerprint(semantic(changed))
    assert identity(plain) == identity(changed)
    assert stage_settings(plain) == stage_settings(changed)
    assert not [key for key in stage_settings(changed) if key.startswith("cluster")]


@pytest.mark.parametrize(
    ("override", "name", "amount"),
    [
        pytest.param("cluster.resources.limits.nvidia.com/gpu=1", "nvidia.com/gpu", "1", id="gpu"),
        pytest.param("cluster.resources.limits.nvidia.com/mig-1g.10gb=1", "nvidia.com/mig-1g.10gb", "1", id="mig"),
        pytest.param(
            "cluster.resources.limits.rdma/hca_shared_devices_a=1", "rdma/hca_shared_devices_a", "1", id="rdma"
        ),
        pytest.param("cluster.resources.limits.cpu=0.5", "cpu", "0.5", id="fraction"),
        pytest.param("cluster.resources.limits.memory=16Gi", "memory", "16Gi", id="memory"),
    ],
)
def test_names_with_dots_survive_dotted_overrides(override: str, name: str, amount: str) -> None:
    config = run(override)
    assert config.cluster.resources.limits == {name: amount}
    assert run(**json.loads(config.model_dump_json(exclude_unset=True))) == config


def test_an_override_wins_over_the_same_key_of_the_file() -> None:
    raw = {"resources": {"limits": {"nvidia.com/gpu": 1, "memory": "1Gi"}}, "labels": {"a.b/c": "d"}}
    config = run("cluster.resources.limits.nvidia.com/gpu=2", "trainer.processes=2", cluster=raw)
    assert config.cluster.resources.limits == {"nvidia.com/gpu": "2", "memory": "1Gi"}
    assert config.cluster.labels == {"a.b/c": "d"}


STAGE = Stage("film", trains=("*",), objective="x", steps=1, metric="m")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["stage_overrides.film.cluster.resources.limits.nvidia.com/gpu=8"], id="dotted"),
        pytest.param(["stage_overrides.film.cluster.resources={limits: {nvidia.com/gpu: 8}}"], id="nested"),
        pytest.param(["stage_overrides.film={cluster.resources.limits: {nvidia.com/gpu: 8}}"], id="half"),
    ],
)
def test_a_stage_has_settings_of_its_own(overrides: list[str]) -> None:
    base = run(*overrides, "stage_overrides.film.trainer.processes=8", "cluster.queue=research")
    own = stage_config(base, STAGE)
    assert own.cluster.resources.limits == {"nvidia.com/gpu": "8"}
    assert own.cluster.queue == "research"
    assert base.cluster.resources.limits == {}


def test_all_faults_come_at_once() -> None:
    text = faults(
        namespace="My_Space",
        image="https://registry/x",
        service_account="Trainer",
        resources={"requests": {"cpu": "2 cores"}, "limits": {"a b": 1}},
        node_selector={"zone": "a b"},
        labels={"stageline.dev/run": "x", "ok": "y" * 64},
        env={"HF_TOKEN": "x", "1A": "x", "PET_NNODES": 2},
        tolerations=[{"keyy": "x"}],
        affinity={"podAfinity": {}},
        storage={"mount_path": "relative", "s3": {"endpoint": "s3.example.org", "proxy": "http://me:pw@proxy:1"}},
        shared_memory="much",
        grace_seconds=0,
        restart_budget=-1,
        pending=3,
    )
    for words in (
        *("namespace: 'My_Space'", "image: 'https://registry/x' is no image reference", "service_account: 'Trainer'"),
        *("'2 cores' is no quantity", "'a b'", "zone: 'a b' is no label value", "'stageline.dev/run' is set by"),
        *("ok: ", "HF_TOKEN looks like a credential", "'1A' is no name", "PET_NNODES is set by", "['keyy']"),
        *("['podAfinity']", "mount_path", "endpoint 's3.example.org' is no http", "proxy holds a user or password"),
        *("'much' is no quantity", "grace_seconds", "restart_budget", "pending: unknown key"),
    ):
        assert words in text, words
    assert "pw@" not in text


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *(
            (n, True)
            for n in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD", "API_KEY", "wandb_api_key", "MY_PWD")
        ),
        *((n, False) for n in ("TOKENIZERS_PARALLELISM", "NCCL_DEBUG", "KEYBOARD", "AWS_REGION", "GLOO_SOCKET_IFNAME")),
    ],
)
def test_names_of_credentials_are_known(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


@pytest.mark.parametrize("value", ["AKIA" + "A" * 16, "hf_" + "a" * 20, "http://me:secret@proxy:3128"])
def test_values_of_credentials_are_refused_under_any_name_and_not_repeated(value: str) -> None:
    text = faults(env={"HARMLESS": value})
    assert "looks like a credential" in text
    assert value not in text


def test_the_grace_period_has_to_outlast_the_shutdown_timeout() -> None:
    with pytest.raises(ConfigError, match=r"cluster.grace_seconds 130 leaves no time to commit: give at least 150"):
        run("cluster.grace_seconds=130")
    assert run("cluster.grace_seconds=150").cluster.grace_for(120) == 150
    assert run("trainer.shutdown_timeout_seconds=600").cluster.grace_for(600) == 630


def test_ranks_and_devices_are_as_many() -> None:
    with pytest.raises(ConfigError, match=r"set trainer.processes=4"):
        run("cluster.resources.limits.nvidia.com/gpu=4")
    run("cluster.resources.limits.nvidia.com/gpu=4", "trainer.processes=4")
    run("cluster.resources.limits.rdma/hca=4")
    # Where stages have settings of their own, each stage's config is what has to fit.
    base = run("cluster.resources.limits.nvidia.com/gpu=4", "stage_overrides.film.trainer.processes=4")
    assert stage_config(base, STAGE).trainer.processes == 4
    wrong = run("cluster.resources.limits.nvidia.com/gpu=4", "stage_overrides.film.trainer.processes=2")
    with pytest.raises(ConfigError, match=r"set trainer.processes=4"):
        stage_config(wrong, STAGE)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param({"resources": {"requests": {"cpu": 4}, "limits": {"cpu": "500m"}}}, "is more than", id="request"),
        pytest.param({"resources": {"requests": {"nvidia.com/gpu": 1}}}, "under limits", id="device-request"),
        pytest.param({"mounts": [{"mount_path": "/a"}]}, "exactly one of", id="no-source"),
        pytest.param(
            {"mounts": [{"mount_path": "/a", "claim": "b", "secret": "c"}]}, "exactly one of", id="two-sources"
        ),
        pytest.param({"mounts": [{"mount_path": "/tmp", "claim": "b"}]}, "hides /tmp", id="over-tmp"),
        pytest.param(
            {"mounts": [{"mount_path": "/stageline", "claim": "b"}], "storage": {"claim": "c"}},
            "hides",
            id="over-store",
        ),
        pytest.param({"storage": {"claim": "c", "mount_path": "//tmp/."}}, "hides /tmp", id="store-over-tmp"),
        pytest.param({"storage": {"claim": "c", "mount_path": "/a/../b"}}, "goes up", id="up"),
        pytest.param({"mounts": [{"mount_path": "//", "claim": "b"}]}, "hides /tmp", id="over-everything"),
        pytest.param({"mounts": [{"mount_path": "/var/run/secrets/stageline/s3", "secret": "b"}]}, "lies in", id="in"),
        pytest.param({"storage": {"sub_path": "../x"}}, "sub_path", id="sub-path"),
        pytest.param({"storage": {"s3": {"ca_config_map": "a", "ca_secret": "b"}}}, "contradict", id="two-cas"),
        pytest.param({"storage": {"s3": {"endpoint": "http://a:99999"}}}, "Port out of range", id="port"),
        pytest.param({"env": {"HTTPS_PROXY": "proxy:http"}}, "Port could not be", id="port-of-a-proxy"),
    ],
)
def test_contradictions_are_refused(raw: dict[str, Any], words: str) -> None:
    assert words in faults(**raw)


# What an API server refuses when the job is made, or its pods, is refused when the config is read.

DIGEST = "@sha256:" + "0" * 64
IMAGES = ("a", "a/b:1", "localhost:5000/a_b/c-d:_x.1", "reg.example/team/x" + DIGEST, "reg.example/x:1" + DIGEST)
NO_IMAGES = (
    *("a/b:-1", "\u00fcn\u00ef", "x/Team:1", "a//b", "a:", "a/b@sha256:12", "a:1:2", "a:" + "1" * 129, "a b", "-a"),
    "a\n",
)


@pytest.mark.parametrize("image", IMAGES)
def test_images_as_registries_write_them(image: str) -> None:
    assert cluster(image=image).image == image


@pytest.mark.parametrize("image", NO_IMAGES)
def test_what_is_no_image_is_refused(image: str) -> None:
    assert "is no image reference" in faults(image=image)


@pytest.mark.parametrize("key", ["run_as_user", "ttl_seconds", "deadline_seconds"])
def test_numbers_that_do_not_fit_are_refused(key: str) -> None:
    assert getattr(cluster(**{key: 2**31 - 1}), key) == 2**31 - 1
    assert key in faults(**{key: 2**31})


def test_names_that_become_labels_or_are_none() -> None:
    assert cluster(queue="x" * 63).queue == "x" * 63
    assert "queue" in faults(queue="x" * 64)
    assert "pull_secrets" in faults(pull_secrets=["a", ""])


def test_a_tag_is_worth_a_note_and_a_digest_is_not() -> None:
    assert "is a tag" in cluster(image="registry:5000/a/b:1").notes[0]
    assert cluster(image="registry:5000/a/b@sha256:" + "0" * 64).notes == ()
    assert cluster().notes == ()


@given(st.integers(0, 10**12), st.sampled_from(["", "m", "k", "M", "G", "Ki", "Mi", "Gi", "Ti", "e3", "E"]))
def test_quantities_mean_what_kubernetes_means(number: int, unit: str) -> None:
    factors = {"": 1, "m": Decimal("0.001"), "k": 1000, "M": 10**6, "G": 10**9, "e3": 1000, "E": 10**18}
    binary = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    assert quantity_value(f"{number}{unit}") == number * Decimal(factors.get(unit) or binary[unit])


AMOUNTS = [
    pytest.param("memory", "500m", "write 500Mi", id="thousandths-of-a-byte"),
    pytest.param("memory", "1500m", "write 1500Mi", id="whole-bytes-in-thousandths"),
    pytest.param("memory", "16", "write 16Gi or 16Mi", id="no-unit"),
    pytest.param("memory", "64k", "write 64Gi or 64Mi", id="too-small"),
    pytest.param("memory", "-1", "is no quantity", id="negative"),
    pytest.param("memory", "1GB", "is no quantity", id="unit-of-others"),
    pytest.param("memory", "0.5", "no whole bytes", id="part-of-a-byte"),
    pytest.param("ephemeral-storage", "500m", "write 500Mi", id="storage"),
    pytest.param("hugepages-2Mi", "512", "write 512Gi or 512Mi", id="huge-pages"),
    pytest.param("cpu", "500Mi", "write 500 or 500m", id="cores-in-bytes"),
    pytest.param("cpu", "4G", "write 4 or 4m", id="billions-of-cores"),
    pytest.param("cpu", "0.0001", "smallest part of a core", id="sliver-of-a-core"),
    pytest.param("nvidia.com/gpu", "0.5", "no whole number of devices", id="half-a-device"),
    pytest.param("nvidia.com/gpu", "500m", "no whole number of devices", id="thousandths-of-devices"),
]


@pytest.mark.parametrize(("name", "amount", "sentence"), AMOUNTS)
def test_an_amount_that_cannot_be_meant_says_what_may_be(name: str, amount: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run(f"cluster.resources.limits.{name}={amount}")
    with pytest.raises(ConfigError, match=sentence):
        cluster(evaluate_resources={"limits": {name: amount}})
    if name == "memory":
        for key in ("shared_memory", "scratch"):
            with pytest.raises(ConfigError, match=sentence):
                run(f"cluster.{key}={amount}")


@pytest.mark.parametrize(
    ("name", "amount", "written"),
    [("memory", "0", "0"), ("memory", "1Gi ", "1Gi"), ("memory", "1.5Gi", "1.5Gi"), ("memory", "1e9", "1e9"),
     ("cpu", "0.5", "0.5"), ("cpu", "1500m", "1500m"), ("cpu", "64", "64"), ("nvidia.com/gpu", "8", "8")],
)  # fmt: skip
def test_an_amount_is_kept_as_it_is_written(name: str, amount: str, written: str) -> None:
    config = run(f"cluster.resources.limits.{name}={amount}", "trainer.processes=8")
    assert config.cluster.resources.limits == {name: written}


def test_a_number_of_a_file_keeps_its_digits() -> None:
    limits = cluster(resources={"limits": {"cpu": 2.25, "memory": 12345678.0}}).resources.limits
    assert limits == {"cpu": "2.25", "memory": "12345678"}


@pytest.mark.parametrize("text", ["", "1 Gi", "-1", "1GiB", "1K", "one", "1.2.3", "0x10", "1e", "∞"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity_value(text)

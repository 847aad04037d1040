"""The environment of a job: what is written is what is read, for every legal config, and bad ones are refused whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageline.config.cluster import StorageConfig
from stageline.errors import ConfigError
from stageline.jobs.environment import (
    ARGUMENTS_VARIABLE,
    CONFIG_VARIABLE,
    JobEnvironment,
    Meeting,
    job_words,
    process_environment,
    rank_environment,
    read_environment,
    storage_environment,
    write_environment,
)
from stageline.store.settings import S3Settings
from stageline.telemetry import FAILURE_DIR_VARIABLE

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=30)
"""Any path, prompt or key that a config may hold: spaces, colons, hashes, quotes, umlauts."""
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.builds(
        JobEnvironment,
        job=st.sampled_from(["", "octa-film", "r1-prepare-data"]),
        item=st.sampled_from(["", "film", "prepare_data", "evaluate"]),
        fingerprint=st.sampled_from(["", "0" * 64]),
        image=st.sampled_from(["", "registry/name@sha256:" + "0" * 64]),
        nodes=st.integers(1, 4096),
        processes=st.integers(1, 64),
        shutdown_timeout_seconds=st.integers(1, 10**7).map(float) | st.floats(0.1, 1e4),
        config=st.dictionaries(TEXT, VALUE, max_size=5),
        deadline=st.none() | st.integers(10**9, 10**10).map(float),
    )
)
def test_what_is_written_is_what_is_read(told):
    assert read_environment(write_environment(told)) == told


def test_an_empty_environment_is_one_process_without_a_job():
    assert read_environment({}) == JobEnvironment()


def test_everything_that_cannot_be_meant_is_told_at_once():
    variables = {"PET_NNODES": "two", "STAGELINE_DEADLINE": "soon", CONFIG_VARIABLE: "[1]"}
    with pytest.raises(ConfigError) as caught:
        read_environment(variables)
    for words in ("PET_NNODES='two'", "STAGELINE_DEADLINE='soon'", "STAGELINE_CONFIG holds a list"):
        assert words in caught.value.message


def test_ranks_get_no_config_but_the_words_they_compare():
    own = write_environment(JobEnvironment(job="a-film", fingerprint="f" * 64, config={"run": "a"}))
    ranks = rank_environment(own, ("train", "film", "--data=/my runs@sha256:0"), "/records", lease_wait_seconds=120)
    assert CONFIG_VARIABLE not in ranks
    assert ranks[FAILURE_DIR_VARIABLE] == "/records"
    assert job_words(ranks) == {"fingerprint": "f" * 64, "arguments": "train film '--data=/my runs@sha256:0'"}
    assert job_words({}) == {"fingerprint": "", "arguments": ""}


def test_waits_that_the_pod_sets_itself_stay():
    own = {"STAGELINE_LEASE_WAIT_SECONDS": "5", "TORCH_CPP_LOG_LEVEL": "INFO"}
    meeting = Meeting(rank=1, member="12345678-90", bind="10.0.0.7", seconds=899.2)
    ranks = rank_environment(own, ("train", "film"), "/records", lease_wait_seconds=120, meeting=meeting)
    assert (ranks["STAGELINE_LEASE_WAIT_SECONDS"], ranks["TORCH_CPP_LOG_LEVEL"]) == ("5", "INFO")
    assert ranks["PET_RDZV_CONF"] == "rank=1,member=12345678-90,bind=10.0.0.7,timeout=900"
    assert ranks["PET_MAX_RESTARTS"] == "0"
    edited = {"PET_RDZV_BACKEND": "c10d", "PET_RDZV_CONF": "join_timeout=7", "PET_MAX_RESTARTS": "3"}
    again = rank_environment(edited, ("train", "film"), "/records", lease_wait_seconds=120, meeting=meeting)
    assert again["PET_RDZV_BACKEND"] == "stageline", "torch's own unpickles what anybody writes into its store"
    assert again.items() >= {name: ranks[name] for name in edited}.items()
    alone = rank_environment({}, ("prepare",), "/records", lease_wait_seconds=120)
    assert not [name for name in alone if name.startswith("PET_")]
    assert ARGUMENTS_VARIABLE in alone


def test_a_process_here_is_told_where_to_leave_its_record():
    assert process_environment(33, "/records") == {
        "PYTHONUNBUFFERED": "1",
        "PET_SHUTDOWN_TIMEOUT": "33",
        "PET_MAX_RESTARTS": "0",
        FAILURE_DIR_VARIABLE: "/records",
    }


def test_the_store_reads_what_the_section_storage_writes(monkeypatch):
    s3 = {
        "endpoint": "https://s3.example.org:9000",
        "path_style": False,
        "proxy": "http://proxy:3128",
        "secret": "keys",
    }
    for name, value in storage_environment(StorageConfig.model_validate({"s3": s3})).items():
        monkeypatch.setenv(name, value)
    read = S3Settings.of_environment()
    assert (read.endpoint, read.path_style, read.proxy) == (s3["endpoint"], False, s3["proxy"])
    assert storage_environment(StorageConfig()) == {}

# ruff: noqa: F811
"""Storage on a real S3 server: conditional writes, parts, keys that are rotated, restarts in the middle of a save."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from stageline.errors import StoreError, StoreUnavailableError
from stageline.store import Store, open_store

from ..store.gate import mount_secret
from .s3_server import BUCKET, S3Server, s3, server  # noqa: F401

pytestmark = pytest.mark.cluster

MEBIBYTE = 2**20
OLD, OLD_SECRET = "AKIAOLDOLDOLDOLD0001", "old/secret+key000000000000000000000001"
NEW, NEW_SECRET = "AKIANEWNEWNEWNEW0002", "new/secret+key000000000000000000000002"


def somewhere() -> Store:
    return open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}")


def test_of_many_writers_exactly_one_creates_and_one_replaces(s3: S3Server) -> None:
    for verb in ("create", "replace"):
        store = somewhere()
        token = ""
        if verb == "replace":
            store.put("claim", b"before")
            token = store.get_with_token("claim")[1]
        start, won = threading.Barrier(8), []

        def claim(number: int, store: Store = store, token: str = token, start: threading.Barrier = start, won: list[int] = won) -> None:  # fmt: skip  # noqa: E501
            start.wait(30)
            data = b"writer %d" % number
            if store.replace("claim", data, token) if token else store.create("claim", data):
                won.append(number)

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(won) == 1, verb
        assert store.get("claim") == b"writer %d" % won[0]


def test_replacing_what_changed_or_is_gone_is_refused(s3: S3Server) -> None:
    store = somewhere()
    assert store.create("k", b"1")
    token = store.get_with_token("k")[1]
    store.put("k", b"2")
    assert not store.replace("k", b"3", token)
    store.delete("k")
    assert not store.replace("k", b"3", token)
    assert not store.exists("k")


def test_large_objects_go_in_parts_and_come_back(s3: S3Server) -> None:
    store = somewhere()
    data = os.urandom(MEBIBYTE) * 70 + b"end"
    store.put("bytes", data)
    store.put("chunks", (data[start : start + 3 * MEBIBYTE] for start in range(0, len(data), 3 * MEBIBYTE)))
    assert store.get("bytes") == data
    assert b"".join(store.stream("chunks")) == data


def test_the_wrong_key_and_the_wrong_secret_are_refused_in_words(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AWS_ACCESS_KEY_ID", OLD), ("AWS_SECRET_ACCESS_KEY", OLD_SECRET)):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            for call in (lambda s: s.put("k", b"x"), lambda s: s.exists("k"), lambda s: s.list()):
                with pytest.raises(StoreError, match="was refused") as caught:
                    call(somewhere())
                assert not isinstance(caught.value, StoreUnavailableError)
                assert value not in str(caught.value)


def test_a_writer_survives_the_rotation_of_its_keys(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old key is dropped by the server one second before the new one arrives in the mounted folder."""
    s3.add_user(OLD, OLD_SECRET)
    mount_secret(tmp_path, "v1", AWS_ACCESS_KEY_ID=OLD, AWS_SECRET_ACCESS_KEY=OLD_SECRET)
    monkeypatch.setenv("STAGELINE_S3_CREDENTIALS", str(tmp_path))
    store = somewhere()
    store.put("object-0", b"0")
    ended = threading.Event()
    faults: list[Exception] = []
    written = [0]

    def write() -> None:
        while not ended.is_set():
            try:
                store.put(f"object-{written[0] + 1}", os.urandom(MEBIBYTE))
            except StoreError as error:
                faults.append(error)
                return
            written[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.5)
    s3.add_user(NEW, NEW_SECRET)
    s3.remove_user(OLD)
    time.sleep(1.0)
    mount_secret(tmp_path, "v2", AWS_ACCESS_KEY_ID=NEW, AWS_SECRET_ACCESS_KEY=NEW_SECRET)
    before = written[0]
    end = time.monotonic() + 30
    while written[0] < before + 5 and not faults and time.monotonic() < end:
        time.sleep(0.1)
    ended.set()
    thread.join(60)
    s3.remove_user(NEW)
    assert faults == []
    assert written[0] >= before + 5


@pytest.mark.slow
def test_a_save_survives_a_restart_of_the_server(s3: S3Server) -> None:
    """Killed in the middle of a multipart upload and away for 20 seconds."""
    store = somewhere()
    store.put("before", b"1")
    data = os.urandom(MEBIBYTE) * 96
    timers: list[threading.Timer] = []

    def chunks() -> Iterator[bytes]:
        yield data[: 48 * MEBIBYTE]
        s3.kill()
        timers.append(threading.Timer(20.0, s3.start))
        timers[0].start()
        yield data[48 * MEBIBYTE :]

    store.put("large", chunks())
    timers[0].join(60)
    assert store.get("large") == data
    assert store.get("before") == b"1"


@pytest.mark.slow
def test_a_server_that_stays_away_ends_the_save_and_harms_nothing(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELINE_S3_PATIENCE_SECONDS", "4")
    store = somewhere()
    store.put("before", b"1")
    s3.kill()
    try:
        for call in (lambda: store.put("k", bytes(40 * MEBIBYTE)), lambda: store.create("k", b"x")):
            with pytest.raises(StoreUnavailableError) as caught:
                call()
            assert caught.value.exit_code == 140
    finally:
        s3.start()
    assert store.get("before") == b"1"
    assert not store.exists("k")

"""S3 as companies have it: a mounted Secret, a private CA, a proxy, keys that change and servers that restart."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stageline.config.cluster import S3Config
from stageline.errors import StoreError, StoreUnavailableError
from stageline.store import Store, open_store, settings
from stageline.store import credentials as credentials_module
from stageline.store.credentials import CredentialFiles
from stageline.store.settings import apply_storage
from stageline.telemetry import redact, redaction

from .conftest import BUCKET, KEY_ID, SECRET
from .gate import Gate, mount_secret, private_ca

OLD = {"AWS_ACCESS_KEY_ID": "AKIAOLDOLDOLDOLD0001", "AWS_SECRET_ACCESS_KEY": "old/secret+key000000000000000000000001"}
NEW = {"AWS_ACCESS_KEY_ID": "AKIANEWNEWNEWNEW0002", "AWS_SECRET_ACCESS_KEY": "new/secret+key000000000000000000000002"}


@pytest.fixture
def gate(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The mock S3 behind a door that can refuse, lose and be shut."""
    with Gate(s3_endpoint) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", gate.url)
        yield gate


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mounted Secret, and no keys in the environment; what is read of it is remembered for as long."""
    monkeypatch.setattr(redaction, "_remembered", set())
    folder = tmp_path / "secret"
    mount_secret(folder, "v1", **OLD)
    monkeypatch.setenv("STAGELINE_S3_CREDENTIALS", str(folder))
    return folder


def somewhere() -> Store:
    return open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}")


def test_keys_come_from_the_mounted_files_and_follow_them(gate: Gate, secret: Path) -> None:
    gate.accepted = {OLD["AWS_ACCESS_KEY_ID"]}
    store = somewhere()
    store.put("a", b"1")
    mount_secret(secret, "v2", **NEW)
    gate.accepted = {NEW["AWS_ACCESS_KEY_ID"]}
    store.put("a", b"2")
    assert store.get("a") == b"2"
    assert [key for *_, key in gate.requests] == [OLD["AWS_ACCESS_KEY_ID"]] + [NEW["AWS_ACCESS_KEY_ID"]] * 2


def test_files_win_over_variables(gate: Gate, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token-of-another-key")
    gate.accepted = {OLD["AWS_ACCESS_KEY_ID"]}
    somewhere().put("a", b"1")


def test_the_default_folder_is_used_where_something_is_mounted(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials_module, "DEFAULT_FOLDER", tmp_path / "none")
    with pytest.raises(StoreError, match="no credentials"):
        somewhere()
    mount_secret(tmp_path / "none", "v1", **OLD)
    gate.accepted = {OLD["AWS_ACCESS_KEY_ID"]}
    somewhere().put("a", b"1")


def test_keys_that_were_refused_are_waited_for(gate: Gate, secret: Path) -> None:
    """The server drops the old key before the kubelet has brought the new one."""
    store = somewhere()
    store.put("a", b"1")
    gate.accepted = {NEW["AWS_ACCESS_KEY_ID"]}
    timer = threading.Timer(0.3, lambda: mount_secret(secret, "v2", **NEW))
    timer.start()
    store.put("a", b"2")
    timer.join()
    assert store.get("a") == b"2"
    assert len([key for *_, key in gate.requests if key == OLD["AWS_ACCESS_KEY_ID"]]) == 2


def test_keys_that_never_worked_are_refused_at_once(gate: Gate, secret: Path) -> None:
    gate.accepted = set()
    start = time.monotonic()
    with pytest.raises(StoreError, match="was refused") as caught:
        somewhere().put("a", b"1")
    assert time.monotonic() - start < 5
    assert not isinstance(caught.value, StoreUnavailableError)
    assert OLD["AWS_ACCESS_KEY_ID"] not in str(caught.value)


def test_a_pair_is_never_mixed_of_two_versions(tmp_path: Path) -> None:
    folder = tmp_path / "secret"
    mount_secret(folder, "v0", AWS_ACCESS_KEY_ID="key-number-0", AWS_SECRET_ACCESS_KEY="secret-number-0")  # noqa: S106
    files = CredentialFiles(folder)
    ended = threading.Event()

    def rotate() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            values = {"AWS_ACCESS_KEY_ID": f"key-number-{number}", "AWS_SECRET_ACCESS_KEY": f"secret-number-{number}"}
            mount_secret(folder, f"v{number}", **values)
            time.sleep(0.001)

    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        for _ in range(500):
            key, secret_text, _ = files.read()
            assert key.rsplit("-", 1)[1] == secret_text.rsplit("-", 1)[1]
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_secret_without_a_key_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "secret"
    mount_secret(folder, "v1", **{name: value for name, value in OLD.items() if name != missing})
    monkeypatch.setenv("STAGELINE_S3_CREDENTIALS", str(folder))
    with pytest.raises(StoreError, match="can't be read") as caught:
        somewhere()
    assert str(folder) in str(caught.value)
    assert missing in caught.value.remedy


def test_what_was_read_from_files_is_redacted_old_values_too(secret: Path) -> None:
    files = CredentialFiles(secret)
    mount_secret(secret, "v2", **NEW, AWS_SESSION_TOKEN="session/of/the/new+one==")  # noqa: S106
    files()
    text = redact({"text": f"{OLD['AWS_SECRET_ACCESS_KEY']} {NEW['AWS_SECRET_ACCESS_KEY']} session/of/the/new+one=="})
    assert text == {"text": "*** *** ***"}
    assert "secret+key" not in repr(files)


def test_a_role_of_the_cluster_is_used(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, context = private_ca(tmp_path)
    token = tmp_path / "token"
    token.write_text("header.payload.signature")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/trainer")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(ca))
    with Gate(s3_endpoint, tls=context) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", gate.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", gate.url)
        store = somewhere()
        store.put("a", b"1")
        assert store.get("a") == b"1"
    assert {verb for verb, *_ in gate.requests} == {"POST", "PUT", "GET"}
    assert gate.requests[1][2] == "ASIAROLEROLEROLE0003"


def test_a_private_ca_is_trusted_when_it_is_named(
    s3_endpoint: str, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, context = private_ca(tmp_path)
    with Gate(s3_endpoint, tls=context) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", gate.url)
        with pytest.raises(StoreError, match="can't be trusted") as caught:
            somewhere().put("a", b"1")
        assert "AWS_CA_BUNDLE" in caught.value.remedy
        monkeypatch.setenv("AWS_CA_BUNDLE", str(ca))
        store = somewhere()
        store.put("a", b"1")
        assert store.get("a") == b"1"


def test_a_ca_file_that_is_none_is_named(secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nothing"))
    with pytest.raises(StoreError, match="can't be read"):
        somewhere()
    (tmp_path / "nothing").write_text("no certificate")
    with pytest.raises(StoreError, match="holds no certificate"):
        somewhere()


@pytest.mark.parametrize("secure", [False, True])
def test_requests_go_through_the_proxy_but_for_excluded_hosts(
    secure: bool, s3_endpoint: str, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, context = private_ca(tmp_path)
    with Gate(s3_endpoint, tls=context if secure else None) as server, Gate("") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(ca))
        monkeypatch.setenv("HTTPS_PROXY" if secure else "HTTP_PROXY", proxy.url)
        store = somewhere()
        store.put("a", b"1")
        assert store.get("a") == b"1"
        assert proxy.requests[0][0] == ("CONNECT" if secure else "PUT")
        seen = len(proxy.requests)
        monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
        somewhere().put("a", b"1")
        assert len(proxy.requests) == seen


def test_a_server_that_restarts_is_waited_for(gate: Gate, secret: Path, tmp_path: Path) -> None:
    """Away in the middle of a large save, for longer than a first request would be tried."""
    store = somewhere()
    store.put("before", b"1")
    data = bytes(34 * 2**20)

    def chunks() -> Iterator[bytes]:
        yield data[: 17 * 2**20]
        gate.close()
        threading.Timer(3 * settings.FIRST_SECONDS, gate.open).start()
        yield data[17 * 2**20 :]

    store.put("large", chunks())
    info = store.stat("large")
    assert info is not None
    assert info.size == len(data)
    assert store.get("before") == b"1"


def test_a_server_that_stays_away_is_unavailable(gate: Gate, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGELINE_S3_PATIENCE_SECONDS", "1.5")
    store = somewhere()
    store.put("before", b"1")
    gate.close()
    start = time.monotonic()
    with ThreadPoolExecutor() as threads:  # each would wait for as long
        calls = [threads.submit(call, "k", b"x") for call in (store.put, store.create)]
    for call in calls:
        error = call.exception()
        assert isinstance(error, StoreUnavailableError)
        assert error.exit_code == 140
    assert 1 < time.monotonic() - start < 30
    gate.open()
    assert store.get("before") == b"1"
    assert not store.exists("k")


def test_in_a_pod_even_the_first_request_waits(gate: Gate, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that starts while the server restarts; elsewhere a wrong address is told at once."""
    gate.close()
    start = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        somewhere().get("k")
    assert time.monotonic() - start < 8
    monkeypatch.setenv("STAGELINE_JOB", "lab-film")
    store = somewhere()
    timer = threading.Timer(3 * settings.FIRST_SECONDS, gate.open)
    timer.start()
    assert store.create("k", b"x")
    timer.join()
    assert store.get("k") == b"x"


def test_a_write_whose_answer_got_lost_was_ours(gate: Gate, secret: Path) -> None:
    store = somewhere()
    store.put("other", b"1")
    gate.lose = 1
    assert store.create("claim", b"mine")
    gate.lose = 1
    assert store.replace("claim", b"mine, again", store.get_with_token("claim")[1])
    assert not store.create("claim", b"another's")
    assert store.get("claim") == b"mine, again"


@pytest.mark.parametrize(("style", "path"), [("", f"/{BUCKET}/"), ("true", f"/{BUCKET}/"), ("false", "/")])
def test_the_style_of_addresses_can_be_chosen(
    style: str, path: str, s3_endpoint: str, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a proxy, which sees whole addresses, because nobody knows a host named after our bucket."""
    with Gate("") as proxy:
        proxy.accepted = set()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.example.invalid:9000")
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("STAGELINE_S3_PATH_STYLE", style)
        with pytest.raises(StoreError, match="refused"):
            open_store(f"s3://{BUCKET}/folder").put("k", b"x")
        host = f"{BUCKET}." if style == "false" else ""
        assert proxy.requests[0][1] == f"http://{host}s3.example.invalid:9000{path}folder/k"


def test_settings_of_a_config_become_variables_but_never_override() -> None:
    s3 = S3Config(endpoint="https://s3:9000", region="eu-1", secret="s3", path_style=False, proxy="http://p")  # noqa: S106
    environment = {"AWS_REGION": "here"}
    apply_storage(s3.model_dump(), environment)
    assert environment == {
        "AWS_ENDPOINT_URL_S3": "https://s3:9000",
        "AWS_REGION": "here",
        "STAGELINE_S3_PATH_STYLE": "false",
        "HTTPS_PROXY": "http://p",
        "HTTP_PROXY": "http://p",
    }
    untouched = {"AWS_ENDPOINT_URL": "http://other"}
    apply_storage({"endpoint": "https://s3:9000"}, untouched)
    assert untouched == {"AWS_ENDPOINT_URL": "http://other"}
    apply_storage(None, untouched)
    assert untouched == {"AWS_ENDPOINT_URL": "http://other"}

"""Stores that refuse: no credentials, no bucket, no answer; and no secret in what is said about it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from guards import HANG_SECONDS

from stageline.errors import StoreError, StoreUnavailableError
from stageline.store import Reference, open_store
from stageline.store.objects import clean

SECRET = "very/secret+key0000000000000000000000001"  # noqa: S105
KEY_ID = "AKIATESTKEYID00000001"


def shown(error: BaseException) -> str:
    """All that a user or a log could ever see of an error."""
    return "".join(traceback.format_exception(error))


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL")
    for name in (*keys, "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("name", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"])
def test_profiles_are_not_read_and_what_is_read_is_said(no_credentials: pytest.MonkeyPatch, name: str) -> None:
    no_credentials.setenv("AWS_EC2_METADATA_DISABLED", "true")
    no_credentials.setenv(name, "lab")
    with pytest.raises(StoreError, match="no credentials") as caught:
        open_store("s3://some-bucket/x")
    assert f"{name}=lab is not read" in caught.value.remedy
    for read in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "STAGELINE_S3_CREDENTIALS"):
        assert read in caught.value.remedy


def test_no_credentials_is_said_before_any_request(no_credentials: pytest.MonkeyPatch) -> None:
    no_credentials.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="no credentials") as caught:
        open_store("s3://some-bucket/x")
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy
    no_credentials.delenv("AWS_EC2_METADATA_DISABLED")
    no_credentials.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="no credentials"):
        open_store("s3://some-bucket/x")


@pytest.mark.usefixtures("s3_environment")
@pytest.mark.parametrize("verb", ["get", "put", "create", "list", "exists", "folders", "replace", "delete_tree"])
def test_a_missing_bucket_is_named_by_every_verb(verb: str) -> None:
    store = open_store("s3://no-such-bucket/folder")
    calls = {
        "get": lambda: store.get("k"),
        "put": lambda: store.put("k", b"x"),
        "create": lambda: store.create("k", b"x"),
        "list": lambda: store.list(),
        "exists": lambda: store.exists("k"),
        "folders": lambda: store.folders(),
        "replace": lambda: store.replace("k", b"x", '"etag"'),
        "delete_tree": lambda: store.delete_tree("k"),
    }
    with pytest.raises(StoreError, match="no bucket") as caught:
        calls[verb]()
    assert "no-such-bucket" in str(caught.value)
    assert SECRET not in shown(caught.value)


def test_an_endpoint_that_is_not_there_is_unavailable(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        # Bound but not listening: connections are refused.
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        store = open_store("s3://some-bucket/x")
        with pytest.raises(StoreUnavailableError, match="did not answer") as caught:
            store.get("key")
    assert caught.value.exit_code >= 128
    assert SECRET not in shown(caught.value)
    assert KEY_ID not in shown(caught.value)


class Refusing(BaseHTTPRequestHandler):
    """An S3 that knows nobody, and repeats what it was told."""

    def answer(self) -> None:
        body = f"<Error><Code>InvalidAccessKeyId</Code><Message>{self.headers['Authorization']}</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_PUT = do_HEAD = answer  # the server looks for these names

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.mark.parametrize("verb", ["get", "put", "exists", "list"])
def test_refused_credentials_are_no_outage_and_are_not_repeated(
    verb: str, s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        store = open_store("s3://some-bucket/x")
        calls = {
            "get": lambda: store.get("k"),
            "put": lambda: store.put("k", b"x"),
            "exists": lambda: store.exists("k"),
            "list": lambda: store.list(),
        }
        try:
            with pytest.raises(StoreError, match="was refused") as caught:
                calls[verb]()
        finally:
            server.shutdown()
            thread.join(HANG_SECONDS)
    assert not isinstance(caught.value, StoreUnavailableError)
    assert caught.value.exit_code < 128
    assert KEY_ID not in shown(caught.value)
    assert SECRET not in shown(caught.value)


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    for uri in (f"s3://{KEY_ID}:{SECRET[:4]}@bucket/x", "s3://bucket/x?X-Amz-Signature=abcdef"):
        with pytest.raises(StoreError) as caught:
            open_store(uri)
        assert KEY_ID not in shown(caught.value)
        assert "abcdef" not in shown(caught.value)


def test_errors_are_cleaned_of_what_looks_like_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = clean(
        f"GET https://u:p@h/?X-Amz-Signature=abc&X-Amz-Credential=AK/x failed with {SECRET}\n\nDebug source: y"
    )
    assert text == "GET https://***@h/?X-Amz-Signature=***&X-Amz-Credential=*** failed with ***"


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(StoreError, match="'ftp'") as caught:
        open_store("ftp://host/x")
    assert "s3" in caught.value.remedy


def test_a_reference_is_a_uri_with_a_digest() -> None:
    reference = Reference("s3://b/a@b/c d", "0" * 64)
    assert Reference.parse(str(reference)) == reference
    for wrong in ("x", "x@sha256:12", f"@sha256:{'0' * 64}", f"x@sha256:{'G' * 64}"):
        with pytest.raises(StoreError, match="no reference"):
            Reference.parse(wrong)


def test_the_torch_free_half_loads_no_torch() -> None:
    script = (
        "import sys, stageline.store, stageline.checkpoint.layout, stageline.checkpoint.metadata, "
        "stageline.checkpoint.lease, stageline.checkpoint.identity, stageline.checkpoint.admission, "
        "stageline.checkpoint.retention, stageline.checkpoint.verify, stageline.checkpoint.lineage, "
        "stageline.checkpoint.export; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG_SECONDS, check=True
    )
    assert done.stdout.strip() == "False"

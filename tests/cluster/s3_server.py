"""A real S3 server of our own on loopback: started, killed and started again, with users that come and go."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BINARY_VARIABLE = "STAGELINE_TEST_VERSITYGW"
BUCKET = "stageline"
ROOT, ROOT_SECRET = "AKIAROOTROOTROOT0000", "root/secret+key00000000000000000000000001"


def find_binary() -> str | None:
    """versitygw: named by the environment, built for the cluster of the tests, or on the path."""
    named = os.environ.get(BINARY_VARIABLE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stageline" / "cluster"
    built = Path(os.environ.get("STAGELINE_CLUSTER_DIR") or cache) / "bin" / "versitygw"
    return named or (str(built) if built.is_file() else shutil.which("versitygw"))


class S3Server:
    """One server and its data below `folder`; the port stays the same over restarts."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.binary = binary
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("data", "iam"):
            (folder / name).mkdir(parents=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {**os.environ, "ROOT_ACCESS_KEY_ID": ROOT, "ROOT_SECRET_ACCESS_KEY": ROOT_SECRET}
        command = [self.binary, "--port", f"127.0.0.1:{self.port}", "--iam-dir", str(self.folder / "iam")]
        command += ["--iam-cache-disable", "--quiet", "--keep-alive", "posix", str(self.folder / "data")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while time.monotonic() < end and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"the S3 server did not start: {(self.folder / 'log').read_text()}")

    def kill(self) -> None:
        """As a node that loses power would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def make_bucket(self) -> None:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ROOT,
            aws_secret_access_key=ROOT_SECRET,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()

    def admin(self, *arguments: str) -> None:
        command = [self.binary, "admin", "--access", ROOT, "--secret", ROOT_SECRET, "--endpoint-url", self.endpoint]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def add_user(self, key: str, secret: str) -> None:
        self.admin("create-user", "--access", key, "--secret", secret, "--role", "admin")

    def remove_user(self, key: str) -> None:
        self.admin("delete-user", "--access", key)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    binary = find_binary()
    if binary is None:
        pytest.fail(f"no S3 server: name versitygw in {BINARY_VARIABLE}, or `make cluster` builds it")
    server = S3Server(binary, tmp_path_factory.mktemp("s3"))
    server.start()
    server.make_bucket()
    yield server
    server.kill()


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, reached with its owner's keys."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ROOT)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ROOT_SECRET)
    return server

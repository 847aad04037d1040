"""Servers that somebody else names: what may be asked there, and what is never sent."""

from __future__ import annotations

import io
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stageline.config import ClusterConfig
from stageline.config.addresses import is_link_local, is_private, link_local_fault, plain_address
from stageline.doctor.line import Line
from stageline.doctor.registry import check_image
from stageline.errors import ConfigError
from stageline.families.panorama_vlm.fetching import Limits, fetch_images
from stageline.pipeline.backend import Backend
from stageline.store.credentials import FOLDER_VARIABLE
from stageline.store.settings import S3Settings

from ..store.gate import private_ca

DIGEST = "sha256:" + "ab" * 32
HUB, AUTH, EVIL, INSIDE = "registry-1.docker.io", "auth.docker.io", "evil.example.org", "registry.internal"
NAMES = {HUB: ["104.16.1.1"], AUTH: ["104.16.2.2"], EVIL: ["104.16.3.3"], INSIDE: ["10.0.0.7"]}
IMAGE = "team/trainer:1.0"


class Internet(ThreadingHTTPServer):
    """Every server there is, over TLS, on this machine.

    names: host -> addresses of each look-up in turn, the last for good.  realm: that registries name.
    token: what realms answer.  moved: host -> where it redirects to.
    asked: (host, verb, path, authorization).  reached: addresses that were connected to.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.names: dict[str, list[Any]] = {name: [found] for name, found in NAMES.items()}
        self.realm = f"https://{AUTH}/token"
        self.token: Any = {"token": "given"}
        self.moved: dict[str, str] = {}
        self.asked: list[tuple[str, str, str, str]] = []
        self.reached: list[str] = []

    def hosts(self, verb: str = "") -> list[str]:
        return [host for host, found, *_ in self.asked if verb in ("", found)]


class Handler(BaseHTTPRequestHandler):
    server: Internet

    def do_HEAD(self) -> None:
        self.note()
        host = self.headers["Host"]
        if host in self.server.moved:
            self.send_response(307)
            self.send_header("Location", self.server.moved[host])
        elif self.headers.get("Authorization") == "Bearer given":
            self.send_response(200)
            self.send_header("Docker-Content-Digest", DIGEST)
        else:
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'Bearer realm="{self.server.realm}",service="here"')
        self.end_headers()

    def do_GET(self) -> None:
        self.note()
        body = json.dumps(self.server.token).encode()
        moved = self.server.moved.get(self.headers["Host"])
        self.send_response(302 if moved else 200)
        if moved:
            self.send_header("Location", moved)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def note(self) -> None:
        authorization = self.headers.get("Authorization", "")
        self.server.asked.append((self.headers["Host"], self.command, self.path, authorization))

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    return private_ca(tmp_path_factory.mktemp("tls"), *NAMES)


@pytest.fixture
def internet(certificates: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    authority, context = certificates
    connect, real_look_up = socket.create_connection, socket.getaddrinfo
    with Internet() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)

        def look_up(host: str, port: int, *more: Any, **options: Any) -> Any:
            if host == "127.0.0.1":
                return real_look_up(host, port, *more, **options)
            turns = server.names.get(host.lower())
            if not turns:
                raise socket.gaierror(f"no such host {host}")
            found = turns.pop(0) if len(turns) > 1 else turns[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

        def reach(target: tuple[str, int], *more: Any, **options: Any) -> socket.socket:
            server.reached.append(target[0])
            return connect(("127.0.0.1", server.server_port), *more, **options)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        monkeypatch.setattr(socket, "create_connection", reach)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        monkeypatch.setenv("no_proxy", "*")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(30)


def check(reference: str = IMAGE) -> Line:
    return check_image("image", reference, 5)


def test_docker_hub_whose_realm_lies_elsewhere_works(internet: Internet) -> None:
    line = check()
    assert line.state == "ok", line.text
    assert DIGEST in line.text
    assert [(host, verb, authorization) for host, verb, _, authorization in internet.asked] == [
        (HUB, "HEAD", ""),
        (AUTH, "GET", ""),
        (HUB, "HEAD", "Bearer given"),
    ]
    assert internet.asked[1][2] == "/token?service=here&scope=repository%3Ateam%2Ftrainer%3Apull"


LINK_LOCAL = [
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "[fe80::1]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "metadata.google.internal",
]
ODDLY_WRITTEN = [
    "169%2E254.169.254",
    "１６９.254.169.254",
    "169。254。169。254.",
    "[64:ff9b:1::a9fe:a9fe]",
    "[fd20:ce::254]",
    "metadata.goog",
]
"""As names are read by other programs than Python: escaped, by other digits and dots of Unicode."""


@pytest.mark.parametrize(
    "realm",
    [
        f"http://{AUTH}/token",
        "file:///etc/passwd",
        f"https://user:word@{AUTH}/token",
        "https:///token",
        "https://127.0.0.1/token",
        "https://10.1.2.3/token",
        "https://[::1]/token",
        "https://[fd00::1]/token",
        f"https://{INSIDE}/token",
        f"https://{INSIDE.upper()}/token",
        f"https://{INSIDE.replace('.', '%2E')}/token",
        *(f"https://{host}/latest" for host in LINK_LOCAL),
    ],
)
def test_a_realm_that_is_no_server_of_the_internet_is_never_asked(internet: Internet, realm: str) -> None:
    internet.realm = realm
    line = check()
    assert line.state == "unknown"
    assert "is not asked further" in line.text
    assert internet.asked == [(HUB, "HEAD", "/v2/team/trainer/manifests/1.0", "")]
    assert len(internet.reached) == 1


def test_one_address_inside_among_others_is_enough(internet: Internet) -> None:
    internet.names[AUTH] = [["104.16.2.2", "192.168.1.1"]]
    assert "192.168.1.1" in check().text
    assert internet.hosts() == [HUB]


def test_a_name_cannot_mean_another_address_once_it_was_judged(internet: Internet) -> None:
    internet.names[AUTH] = [["104.16.2.2"], ["169.254.169.254"]]
    check()
    assert internet.reached == ["104.16.1.1", "104.16.2.2", "104.16.1.1"]


def test_a_private_registry_may_have_a_private_realm_and_no_link_local_one(internet: Internet) -> None:
    internet.realm = "https://127.0.0.1/token"
    assert check(f"{INSIDE}/team/trainer:1.0").state == "ok"
    internet.realm = "https://169.254.169.254/token"
    assert "is not asked further" in check(f"{INSIDE}/team/trainer:1.0").text
    assert "127.0.0.1" in internet.reached
    assert "169.254.169.254" not in internet.reached


@pytest.mark.parametrize("who", [HUB, AUTH])
def test_no_redirect_is_followed(internet: Internet, who: str) -> None:
    """Of a registry it would take the token along, of a realm it would lead anywhere."""
    internet.moved = {who: f"https://{EVIL}/take"}
    assert check().state == "unknown"
    assert EVIL not in internet.hosts()


def test_the_token_goes_to_nobody_but_the_registry(internet: Internet) -> None:
    internet.token = {"access_token": "other"}
    assert check().state == "unknown"
    assert {authorization for host, *_, authorization in internet.asked if host != HUB} == {""}


@pytest.mark.parametrize(
    "token", [["given"], {"token": 7}, {"token": "a\r\nX: b"}, {"token": ""}, {"token": "x" * 10**5}, "x"]
)
def test_what_is_no_token_is_not_sent(internet: Internet, token: Any) -> None:
    internet.token = token
    assert check().state == "unknown"
    assert all(authorization == "" for *_, authorization in internet.asked)


@pytest.mark.parametrize("host", LINK_LOCAL[:4])
def test_an_image_from_a_link_local_registry_is_not_asked_for(internet: Internet, host: str) -> None:
    assert "is not asked" in check(f"{host}:443/a:1").text
    assert internet.reached == []


@pytest.mark.parametrize("host", [*LINK_LOCAL, *ODDLY_WRITTEN, "169.254.169.254\\.example.org"])
def test_an_endpoint_of_a_config_is_not_link_local(host: str) -> None:
    told = "is no URL" if "\\" in host else "is a link-local address"
    for key in ("endpoint", "proxy"):
        with pytest.raises(ValueError, match=told):
            ClusterConfig.model_validate({"image": "a", "storage": {"s3": {key: f"http://{host}:80"}}})
    with pytest.raises(ConfigError, match=told):
        Backend.connect(f"http://{host}/pipeline")


def test_identity_endpoints_of_the_environment_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://169.254.1.1:9000")  # whoever starts the process knows
    assert S3Settings.of_environment().endpoint == "http://169.254.1.1:9000"


@pytest.mark.parametrize("host", ["169.254.169.254", "metadata.google.internal", EVIL])
def test_an_address_in_a_table_leads_to_no_identity(internet: Internet, tmp_path: Path, host: str) -> None:
    internet.names[EVIL] = [["169.254.169.254"]]
    (found,) = fetch_images([f"https://{host}/a.png"], tmp_path, Limits(attempts=1))
    assert "link-local" in found.reason
    assert internet.reached == []


def test_a_server_of_a_table_cannot_mean_another_address_once_it_was_judged(internet: Internet, tmp_path: Path) -> None:
    internet.names[EVIL] = [["104.16.3.3"], ["169.254.169.254"]]
    fetch_images([f"https://{EVIL}/a.png"], tmp_path, Limits(attempts=1))
    assert internet.reached == ["104.16.3.3"], "the one that was judged"
    (found,) = fetch_images([f"https://{EVIL}/b.png"], tmp_path, Limits(attempts=1))
    assert "169.254.169.254, an address that is not asked" in found.reason
    assert internet.reached == ["104.16.3.3"]


def test_addresses_are_read_as_the_system_reads_them() -> None:
    metadata = plain_address("169.254.169.254")
    assert {plain_address(host) for host in LINK_LOCAL[:4]} == {metadata} == {plain_address(LINK_LOCAL[6])}
    for host, private in [
        ("8.8.8.8", False),
        ("100.64.0.1", True),
        ("240.0.0.1", True),
        ("::", True),
        ("2600::1", False),
    ]:
        address = plain_address(host)
        assert address is not None
        assert (is_private(address), is_link_local(address)) == (private, False)
    assert plain_address("registry.example.org") is None
    assert link_local_fault("https://storage.example.org") == ""


NO_HTTP = {
    "no-status": b"garbage\r\n\r\n",
    "too-many-headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    "a-long-header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "a-status-of-their-own": b"HTTP/1.1 99999 OK\r\n\r\n",
    "a-realm-with-a-gap": b'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm="https://a b/"\r\n\r\n',
}


class Says(ThreadingHTTPServer):
    """A server on this machine that says what it was given, in pieces. pause: seconds after each."""

    daemon_threads = True

    def __init__(self, pieces: Iterable[bytes], pause: float = 0.0) -> None:
        self.pieces, self.pause = list(pieces), pause
        super().__init__(("127.0.0.1", 0), BaseHTTPRequestHandler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def finish_request(self, request: Any, client_address: Any) -> None:
        begun = request.recv(65536)
        with suppress(OSError):
            if begun[:1] == b"\x16":  # TLS, which it does not speak
                request.sendall(b"HTTP/1.0 400 No\r\n\r\n")
                return
            for piece in self.pieces:
                request.sendall(piece)
                time.sleep(self.pause)


@pytest.fixture
def says() -> Iterator[Callable[..., str]]:
    """Start one; gives `<host>:<port>`."""
    with ExitStack() as stack:

        def start(pieces: Iterable[bytes], pause: float = 0.0) -> str:
            server = stack.enter_context(Says(pieces, pause))
            stack.callback(server.shutdown)
            return f"127.0.0.1:{server.server_port}"

        yield start


@pytest.mark.parametrize("answer", NO_HTTP.values(), ids=NO_HTTP)
def test_a_registry_that_speaks_no_http_is_told_and_is_no_fault_of_ours(
    says: Callable[..., str], answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    line = check(f"{says([answer])}/a:1")
    assert (line.state, "does not answer from here: what it says is no HTTP" in line.text) == ("unknown", True)


def test_a_server_that_drips_is_given_up(
    says: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then is no silence: neither in the head of an answer nor behind it."""
    monkeypatch.setenv("no_proxy", "*")
    limits = Limits(attempts=1, timeout_seconds=0.5)
    ok = b"HTTP/1.1 200 OK\r\n"
    slow = [ok, *([b"A"] * 3000)], [ok + b"Content-Length: 3000\r\n\r\n", *([b"x"] * 3000)]
    urls = [f"http://{says(pieces, 0.1)}/{number}.png" for number, pieces in enumerate(slow)]
    begin = time.monotonic()
    head, body = fetch_images(urls, tmp_path, limits)
    assert "no whole head of an answer within 2 s" in head.reason
    assert "expected at least 1024 per second" in body.reason
    assert time.monotonic() - begin < 60


def test_a_server_that_is_slow_and_sends_all_is_waited_for(
    says: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(image, "PNG")
    data = image.getvalue()
    parts = [data[at : at + 1500] for at in range(0, len(data), 1500)]
    url = f"http://{says([b'HTTP/1.0 200 OK' + bytes((13, 10, 13, 10)), *parts], 0.1)}/a.png"
    (found,) = fetch_images([url], tmp_path, Limits(attempts=1, timeout_seconds=0.5))
    assert (found.status, found.reason) == ("fetched", "")

"""A real HTTP server in front of S3: plain or TLS, also a forward proxy; refuses keys, loses answers, goes away."""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CA_NAME = "Private CA"
ROLE_ANSWER = """<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>ASIAROLEROLEROLE0003</AccessKeyId><SecretAccessKey>role/secret</SecretAccessKey>
<SessionToken>role/token</SessionToken><Expiration>2100-01-01T00:00:00Z</Expiration>
</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""
Key = ec.EllipticCurvePrivateKey


class Handler(BaseHTTPRequestHandler):
    """Forwards one connection's requests to the gate's target, or to the address a client of a proxy names."""

    protocol_version = "HTTP/1.1"
    server: GateServer

    def forward(self) -> None:
        gate = self.server.gate
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        found = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization") or "")
        key = found[1] if found else ""
        gate.requests.append((self.command, self.path, key))
        if "Action=AssumeRoleWithWebIdentity" in self.path:
            self.answer(200, ROLE_ANSWER.encode())
            return
        if gate.accepted is not None and key not in gate.accepted:
            self.answer(403, b"<Error><Code>InvalidAccessKeyId</Code><Message>unknown</Message></Error>")
            return
        if self.command == "PUT" and gate.hold is not None and gate.hold in self.path:
            gate.held.set()
            gate.released.wait(120)
        address = urlsplit(self.path)
        path = f"{address.path}?{address.query}" if address.query else address.path
        with contextlib.closing(http.client.HTTPConnection(address.netloc or gate.target, timeout=30)) as onward:
            onward.request(self.command, path, body=body, headers=dict(self.headers))
            answer = onward.getresponse()
            data = answer.read()
        if gate.lose > 0 and self.command == "PUT":
            gate.lose -= 1
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
        self.answer(answer.status, data, headers)

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_CONNECT(self) -> None:
        """A tunnel, as proxies make it for TLS."""
        self.server.gate.requests.append(("CONNECT", self.path, ""))
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as onward:
            self.send_response_only(200)
            self.end_headers()
            pairs = {self.connection: onward, onward: self.connection}
            while True:
                for ready in select.select(list(pairs), [], [], 30)[0] or [None]:
                    data = ready.recv(65536) if ready else b""
                    if not data:
                        self.close_connection = True
                        return
                    pairs[ready].sendall(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # the server looks for these names

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class GateServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], gate: Gate) -> None:
        super().__init__(address, Handler)
        self.gate = gate
        self.connections: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, *_: object) -> None:
        """A client that hung up is no event."""


class Gate:
    """accepted: key ids let through, None lets everybody.  lose: answers to writes still to be lost.

    hold: writes whose path contains this stand still until `released`; `held` tells that one does.
    """

    def __init__(self, target: str, *, tls: ssl.SSLContext | None = None) -> None:
        self.target = target.removeprefix("http://")
        self.tls = tls
        self.accepted: set[str] | None = None
        self.lose = 0
        self.hold: str | None = None
        self.held, self.released = threading.Event(), threading.Event()
        self.requests: list[tuple[str, str, str]] = []
        self.port = 0
        self._server: GateServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Listen, after a time away on the same port again."""
        server = GateServer(("127.0.0.1", self.port), self)
        if self.tls:
            server.socket = self.tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = server.server_port
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(30)
            for connection in self._server.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._server = None

    def __enter__(self) -> Gate:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self.close()


def private_ca(folder: Path, *names: str) -> tuple[Path, ssl.SSLContext]:
    """A CA of our own: its PEM file, and what a server on loopback presents that this CA signed."""
    now = datetime.now(UTC)
    pem = serialization.Encoding.PEM

    def certificate(name: str, key: Key, signer: Key, *, ca: bool = False) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CA_NAME)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            subjects = [x509.IPAddress(ip_address("127.0.0.1")), *map(x509.DNSName, names)]
            builder = builder.add_extension(x509.SubjectAlternativeName(subjects), critical=False)
        return builder.sign(signer, hashes.SHA256()).public_bytes(pem)

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_file, pair = folder / "ca.crt", folder / "server.pem"
    ca_file.write_bytes(certificate(CA_NAME, ca_key, ca_key, ca=True))
    pair.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate("s3", key, ca_key)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    return ca_file, context


def mount_secret(folder: Path, version: str, **values: str) -> None:
    """Write a Secret as a kubelet does: a folder of its own, then the link `..data` moved in one step."""
    target = folder / f"..{version}"
    target.mkdir(parents=True)
    for name, value in values.items():
        (target / name).write_text(value)
    fresh = folder / "..data_tmp"
    fresh.symlink_to(target.name)
    fresh.rename(folder / "..data")
    for name in values:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")

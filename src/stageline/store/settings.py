"""Where S3 is and how it is reached, from the usual variables: endpoint, region, style of address, CA, proxy.

`apply_storage` sets these variables from a config, for processes that nobody gave any: the steps of a pipeline run in
pods whose environment is empty. Credentials are no part of this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from stageline.errors import StoreError

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
STYLE_VARIABLE = "STAGELINE_S3_PATH_STYLE"
PATIENCE_VARIABLE = "STAGELINE_S3_PATIENCE_SECONDS"
PATIENCE_SECONDS = 60.0
"""How long a request goes on asking a server that answered before: a restart of it takes less. Chosen here."""
FIRST_SECONDS = 3.0
"""The same for a server that never answered, whose address may be wrong. Chosen here."""
JOB_VARIABLE = "STAGELINE_JOB"
"""Name of the job that a pod belongs to."""
POD_VARIABLES = (JOB_VARIABLE, "KFP_POD_NAME")
"""Set in pods that stages and steps run in: their address was right elsewhere, and a restart must not cost a pod."""
CA_FOLDER = Path("/var/run/secrets/stageline/ca")
CA_FILE = CA_FOLDER / "ca.crt"
"""Where pods have the CA of a private S3 server."""


@dataclass(frozen=True)
class S3Settings:
    """One way to an S3 server. ca: path of a PEM file.  proxy: its URL, empty for none."""

    endpoint: str | None
    region: str
    path_style: bool
    ca: str
    proxy: str
    proxy_excludes: str
    patience_seconds: float
    first_seconds: float

    @classmethod
    def of_environment(cls) -> S3Settings:
        env = os.environ
        endpoint = next((env[name] for name in ENDPOINTS if env.get(name)), None)
        style = env.get(STYLE_VARIABLE, "").lower()
        if style not in ("", "true", "false", "1", "0"):
            raise StoreError(f"{STYLE_VARIABLE} is {style!r}", remedy="write true or false")
        scheme = urlsplit(endpoint).scheme if endpoint else "https"
        if scheme not in ("http", "https"):
            raise StoreError(
                f"the S3 endpoint is {endpoint!r}", remedy=f"{ENDPOINTS[0]} looks like https://host[:port]"
            )
        patience = env.get(PATIENCE_VARIABLE, "")
        try:
            seconds = float(patience or PATIENCE_SECONDS)
        except ValueError:
            raise StoreError(f"{PATIENCE_VARIABLE} is {patience!r}", remedy="write a number of seconds") from None
        return cls(
            endpoint=endpoint,
            region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1",
            path_style=style in ("true", "1") if style else endpoint is not None,
            ca=env.get("AWS_CA_BUNDLE", ""),
            proxy=_either(f"{scheme}_proxy"),
            proxy_excludes=_either("no_proxy"),
            patience_seconds=seconds,
            first_seconds=seconds if any(env.get(n) for n in POD_VARIABLES) else min(seconds, FIRST_SECONDS),
        )

    def config(self, bucket: str) -> dict[str, Any]:
        """obstore's settings of the bucket."""
        config: dict[str, Any] = {"region": self.region, "virtual_hosted_style_request": not self.path_style}
        if self.endpoint is not None:
            config["aws_endpoint_url_s3"] = self.endpoint if self.path_style else _with_bucket(self.endpoint, bucket)
        return config

    def client_options(self) -> dict[str, Any]:
        """obstore's settings of the connection."""
        options: dict[str, Any] = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(minutes=5)}
        options["allow_http"] = bool(self.endpoint and self.endpoint.startswith("http://"))
        if self.ca:
            options["root_certificate"] = _certificates(Path(self.ca))
        if self.proxy:
            options["proxy_url"] = self.proxy
            if self.ca:
                options["proxy_ca_certificate"] = options["root_certificate"].decode()
            if self.proxy_excludes:
                options["proxy_excludes"] = self.proxy_excludes
        return options

    def retries(self, *, answered: bool) -> dict[str, Any]:
        """How obstore goes on asking. Connections that time out count as well, so it may take one of them longer."""
        seconds = self.patience_seconds if answered else self.first_seconds
        backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2}
        return {
            "max_retries": 1000,
            "retry_timeout": timedelta(seconds=seconds),
            "backoff": backoff,
        }


def apply_storage(s3: Mapping[str, Any] | None, environment: MutableMapping[str, str] | None = None) -> None:
    """Set the variables that say where S3 is, from the section `cluster.storage.s3` of a config.

    Variables that are set already stay: who started the process knew better. The CA is taken from where pods mount it.
    """
    env = os.environ if environment is None else environment
    plain = dict(s3 or {})

    def default(name: str, value: Any) -> None:
        if value not in (None, "") and not env.get(name):
            env[name] = str(value)

    if not any(env.get(name) for name in ENDPOINTS):
        default(ENDPOINTS[0], plain.get("endpoint"))
    default("AWS_REGION", plain.get("region"))
    if plain.get("path_style") is not None:
        default(STYLE_VARIABLE, str(plain["path_style"]).lower())
    if not (env.get("https_proxy") or env.get("http_proxy")):
        default("HTTPS_PROXY", plain.get("proxy"))
        default("HTTP_PROXY", plain.get("proxy"))
    if not env.get("no_proxy"):
        default("NO_PROXY", plain.get("no_proxy"))
    if CA_FILE.exists():
        default("AWS_CA_BUNDLE", CA_FILE)


def _either(name: str) -> str:
    """A variable that people write in small or in capital letters."""
    return os.environ.get(name) or os.environ.get(name.upper()) or ""


def _with_bucket(endpoint: str, bucket: str) -> str:
    """The endpoint with the bucket as part of the host, as obstore wants it for addresses of that style."""
    parts = urlsplit(endpoint)
    return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))


def _certificates(path: Path) -> bytes:
    """The PEM file of a CA."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"the CA file {str(path)!r} can't be read: {error.strerror}", remedy="mend AWS_CA_BUNDLE or unset it"
        ) from error
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise StoreError(f"the CA file {str(path)!r} holds no certificate", remedy="AWS_CA_BUNDLE names a PEM file")
    return data

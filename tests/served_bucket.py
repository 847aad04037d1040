"""An S3 server of this machine with one empty bucket, for tests: moto on loopback."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def _server_class() -> Any:
    """moto's server, loaded by the first who wants one.

    A quarter of what a request takes would go into a line about it, and as much again into looking which services moto
    has, a folder each, anew for every request.
    """
    import moto.backends
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    services = tuple(moto.backends.list_of_moto_modules())
    moto.backends.list_of_moto_modules = lambda: services
    return ThreadedMotoServer


@contextmanager
def served_bucket(bucket: str, key: str, secret: str) -> Iterator[str]:
    """The endpoint of the server while it runs, `http://host:port`. key, secret: of a client; any are taken."""
    import boto3

    server = _server_class()(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": key, "aws_secret_access_key": secret, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, **keys)
    client.create_bucket(Bucket=bucket)
    client.close()
    yield endpoint
    server.stop()

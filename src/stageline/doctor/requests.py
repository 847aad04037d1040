"""One request to a server that somebody else named: no redirects, and to the address that was judged, no other."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from stageline.config.addresses import link_local_fault, plain_address
from stageline.config.connections import JudgedHandler, Refused, RefusedAddressError

REDIRECTS = (301, 302, 303, 307, 308)
LARGEST_ANSWER = 2**20


def request(method: str, url: str, headers: dict[str, str], seconds: float, refused: Refused) -> tuple[int, Any, bytes]:
    """(status, headers, body) of one request to an http or https URL; a redirect is an answer like others.

    seconds: of silence.  refused: whether an address may not be asked.
    OSError or ValueError as the connection fails or what comes is no HTTP; RefusedAddressError before anything is sent.
    """
    host = urlsplit(url).hostname or ""
    written = plain_address(host)
    if link_local_fault(url) or (written is not None and refused(written)):
        raise RefusedAddressError(f"{host!r:.200} is an address that is not asked for it")
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        JudgedHandler(refused),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    asked = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310  # http and https only
    try:
        with opener.open(asked, timeout=seconds) as answer:
            return answer.status, answer.headers, answer.read(LARGEST_ANSWER)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, b""
    except HTTPException as error:
        raise OSError(f"what it says is no HTTP ({type(error).__name__}: {error})") from error

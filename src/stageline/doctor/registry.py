"""Whether an image is in its registry: one HEAD for its manifest, with the anonymous token most registries give.

Nodes pull with credentials and through proxies of their own: what cannot be answered from here is unknown, not wrong.
"""

from __future__ import annotations

import re
import ssl
import urllib.error
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from stageline.config.addresses import addresses_of, is_link_local, is_private
from stageline.config.bounds import read_json
from stageline.config.connections import RefusedAddressError
from stageline.doctor.line import Line, ok, unknown, wrong
from stageline.doctor.requests import REDIRECTS, request

MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


HUB = "registry-1.docker.io"
"""Docker Hub's own registry; runtimes ask it for what is called docker.io or has no host."""
TOKEN = re.compile(r"[!-~]{1,65536}")
"""What fits into a header."""


@dataclass(frozen=True)
class ImageName:
    """An image reference in its parts. version: digest or tag."""

    host: str
    repository: str
    version: str

    @property
    def is_pinned(self) -> bool:
        return self.version.startswith("sha256:")


def parse_image(reference: str) -> ImageName:
    """As container runtimes read it: without a host it is Docker Hub's, without a tag `latest`."""
    rest, _, digest = reference.partition("@")
    first, slash, path = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host = first
    else:
        host, path = HUB, rest
    if host in ("docker.io", "index.docker.io", HUB):
        host, path = HUB, path if "/" in path else f"library/{path}"
    repository, colon, tag = path.rpartition(":")
    return ImageName(host, repository if colon else path, digest or (tag if colon else "latest"))


def check_image(name: str, reference: str, seconds: float) -> Line:
    """One line about an image."""
    if not reference:
        return unknown(name, "no image is set", "cluster.image=<registry>/stageline/trainer@sha256:…")
    image = parse_image(reference)
    try:
        status, digest = _head(image, seconds)
    except RefusedAddressError as error:
        return unknown(name, f"registry {image.host} is not asked further: {error}", f"crane digest {reference}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return unknown(name, f"registry {image.host} does not answer from here: {reason}", f"crane digest {reference}")
    if status == 200 and image.is_pinned:
        return ok(name, reference)
    if status == 200:
        pin = f"cluster.image={image_without_version(reference)}@{digest}" if digest else ""
        return ok(name, f"{reference}, today {digest or 'of unknown digest'}; pin it: {pin or 'name@sha256:…'}")
    if status == 404:
        remedy = f"push it{_push_command(reference)}, or set cluster.image to one that exists"
        return wrong(name, f"{image.host} has no {image.repository} {image.version}", remedy)
    if status in (401, 403):
        return unknown(
            name,
            f"{image.host} wants credentials, which nodes take from cluster.pull_secrets",
            f"crane digest {reference}",
        )
    return unknown(name, f"{image.host} answers {status} for {reference}", f"crane digest {reference}")


def _push_command(reference: str) -> str:
    """In brackets, what builds and pushes that image; "" where `make images` would call it otherwise."""
    own = re.fullmatch(r"(.+)/stageline/(?:trainer|launcher)", image_without_version(reference))
    return f" (make images BASE_IMAGE=… REGISTRY={own[1]} PUSH=1)" if own else ""


def image_without_version(reference: str) -> str:
    """The reference without tag and digest."""
    return re.sub(r":[^/:]+$", "", reference.partition("@")[0])


def _head(image: ImageName, seconds: float) -> tuple[int, str]:
    """(status, digest). Plain HTTP where the registry speaks no TLS, as runtimes do for those told insecure."""
    try:
        return _ask(f"https://{image.host}", image, seconds)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        plain = isinstance(reason, ssl.SSLError) and re.search(
            r"(?i)wrong.version|record layer|unexpected eof|packet", str(reason)
        )
        if not plain and not isinstance(reason, ConnectionResetError):
            raise
    return _ask(f"http://{image.host}", image, seconds)


def _ask(base: str, image: ImageName, seconds: float) -> tuple[int, str]:
    url = f"{base}/v2/{image.repository}/manifests/{image.version}"
    status, headers = request("HEAD", url, {"Accept": MANIFESTS}, seconds, is_link_local)[:2]
    challenge = str(headers.get("WWW-Authenticate") or "")
    if status == 401 and challenge.lower().startswith("bearer "):
        token = _anonymous_token(challenge, image, seconds)
        if token:
            accepted = {"Accept": MANIFESTS, "Authorization": f"Bearer {token}"}
            status, headers = request("HEAD", url, accepted, seconds, is_link_local)[:2]
    digest = str(headers.get("Docker-Content-Digest") or "")
    return status, digest if re.fullmatch(r"sha256:[0-9a-f]{64}", digest) else ""


def _anonymous_token(challenge: str, image: ImageName, seconds: float) -> str:
    """What the realm of a challenge gives for the asking; "" for nothing. RefusedAddressError for a realm elsewhere.

    The realm gets no credentials, and what it gives goes to the registry alone.
    """
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = urlsplit(fields.get("realm", ""))
    if realm.scheme != "https" or not realm.hostname or "@" in realm.netloc:
        raise RefusedAddressError(f"its realm {fields.get('realm', '')!r:.200} is no plain https:// URL")
    asked = [("service", fields.get("service", "")), ("scope", fields.get("scope") or _scope(image))]
    url = realm._replace(query="&".join(part for part in (realm.query, urlencode(asked)) if part), fragment="").geturl()
    refused = is_link_local if _is_private(image.host) else is_private
    status, _, body = request("GET", url, {}, seconds, refused)
    if status in REDIRECTS:
        raise RefusedAddressError(f"its realm {realm.geturl()!r:.200} leads elsewhere, which is not followed")
    try:
        plain = read_json(body) if status == 200 else {}
    except ValueError:
        return ""
    found = [plain.get(key) for key in ("token", "access_token")] if isinstance(plain, dict) else []
    return next((text for text in found if isinstance(text, str) and TOKEN.fullmatch(text)), "")


def _scope(image: ImageName) -> str:
    return f"repository:{image.repository}:pull"


def _is_private(host: str) -> bool:
    """Whether a registry lies on a private address itself. One that only a proxy can find is taken as a public one."""
    parts = urlsplit(f"//{host}")
    try:
        return any(map(is_private, addresses_of(parts.hostname or "", parts.port or 443)))
    except OSError:
        return False

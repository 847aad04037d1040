"""Object stores through obstore: memory, S3 and Google Cloud Storage, with errors a reader can act on.

S3 takes the usual `AWS_*` variables (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_REGION`, keys or a role). Nothing
of them ever stands in an error: causes are cut off and the text is cleaned.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stageline.errors import StoreError, StoreUnavailableError
from stageline.store.keys import Data, Names, NotFoundError, ObjectInfo

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PART_BYTES = 16 * 2**20
"""Bytes per request when streaming; chosen here so that a part fits the client's 30 s on a slow line."""
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_TOKEN", "AWS_ACCESS_KEY_ID")
ROLES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
RETRIES = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}


def clean(text: str) -> str:
    """One line of an error of obstore, without its debug part and without credentials."""
    line = " ".join(text.split("\n\nDebug source")[0].split())
    for name in SECRETS:
        value = os.environ.get(name)
        if value:
            line = line.replace(value, "***")
    line = re.sub(r"(?i)(x-amz-[a-z-]*|signature|credential|AWSAccessKeyId)=[^&\s]*", r"\1=***", line)
    return re.sub(r"://[^/\s@]*@", "://***@", line)


@contextmanager
def _speaking(uri: str, key: str) -> Iterator[None]:
    """Turn obstore's errors into ours; the cause is cut off because it may carry credentials."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    where = f"{uri}/{key}" if key else uri
    try:
        yield
    except (BaseError, FileNotFoundError, ValueError) as error:
        text = clean(str(error))
        if "NoSuchBucket" in text:
            raise StoreError(f"there is no bucket for {where!r}", remedy="create the bucket or fix `root`") from None
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(f"there is nothing at {where!r}", remedy="check the URI") from None
        refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if refused or re.search(r"\b40[13]\b|InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied", text):
            raise StoreError(
                f"{where!r} was refused: {text}", remedy="check the credentials and what they may do"
            ) from None
        if re.search(r"(?i)169\.254\.|credential|token", text):
            raise StoreError(f"no credentials for {where!r}: {text}", remedy=CREDENTIALS_REMEDY) from None
        if re.search(r"(?i)error sending request|timed? ?out|connect|dns|\b50[0-9]\b|\b429\b", text):
            raise StoreUnavailableError(
                f"{where!r} did not answer: {text}", remedy="check the endpoint and the network, then start again"
            ) from None
        raise StoreError(f"{where!r} failed: {text}", remedy="check the URI and the store's settings") from None


CREDENTIALS_REMEDY = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the process a role"


class Objects:
    """A bucket (or the memory of this process) as a store. uri: for messages.  bucket: whether one can be missing."""

    def __init__(self, store: ObjectStore, uri: str, *, bucket: bool) -> None:
        self.store = store
        self.uri = uri
        self._bucket_seen = not bucket

    def put(self, key: str, data: Data) -> None:
        import obstore

        source = data if isinstance(data, bytes | Path) else _parts(data)
        with _speaking(self.uri, key):
            obstore.put(self.store, key, source, chunk_size=PART_BYTES)

    def create(self, key: str, data: bytes) -> bool:
        return self._put_if(key, data, "create")

    def replace(self, key: str, data: bytes, token: str) -> bool:
        e_tag, _, version = token.partition("\x1f")
        return self._put_if(key, data, {"e_tag": e_tag, **({"version": version} if version else {})})

    def _put_if(self, key: str, data: bytes, mode: Any) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with _speaking(self.uri, key):
            try:
                obstore.put(self.store, key, data, mode=mode)
            except AlreadyExistsError:
                return False
            except PreconditionError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return False
        return True

    def get(self, key: str) -> tuple[bytes, str]:
        import obstore

        with _speaking(self.uri, key):
            result = obstore.get(self.store, key)
            return bytes(result.bytes()), _token(result.meta)

    def stream(self, key: str, chunk_bytes: int) -> Iterator[bytes]:
        import obstore

        with _speaking(self.uri, key):
            size = obstore.head(self.store, key)["size"]
        for start in range(0, size, chunk_bytes):
            with _speaking(self.uri, key):
                chunk = bytes(obstore.get_range(self.store, key, start=start, end=min(size, start + chunk_bytes)))
            yield chunk

    def stat(self, key: str) -> ObjectInfo | None:
        import obstore

        try:
            with _speaking(self.uri, key):
                meta = obstore.head(self.store, key)
        except NotFoundError:
            # A HEAD has no body to tell a missing bucket from a missing key; a listing has.
            if not self._bucket_seen:
                self.folders(key)
            return None
        self._bucket_seen = True
        return ObjectInfo(key, meta["size"], _token(meta))

    def list(self, prefix: str) -> list[ObjectInfo]:
        import obstore

        with _speaking(self.uri, prefix):
            metas = obstore.list(self.store, prefix or None).collect()
        self._bucket_seen = True
        return sorted((ObjectInfo(m["path"], m["size"], _token(m)) for m in metas), key=lambda info: info.key)

    def folders(self, prefix: str) -> Names:
        import obstore

        with _speaking(self.uri, prefix):
            result = obstore.list_with_delimiter(self.store, prefix or None)
        self._bucket_seen = True
        return sorted(common.rstrip("/").rsplit("/", 1)[-1] for common in result["common_prefixes"])

    def delete(self, keys: Iterable[str]) -> None:
        import obstore

        for key in keys:
            try:
                with _speaking(self.uri, key):
                    obstore.delete(self.store, key)
            except NotFoundError:
                continue

    def delete_tree(self, prefix: str) -> None:
        import obstore

        keys = [info.key for info in self.list(prefix)]
        if keys:
            with _speaking(self.uri, prefix):
                obstore.delete(self.store, keys)

    def tidy(self, prefix: str) -> None:
        """Nothing to do: an object appears whole. Uploads in parts that were cut off are the bucket's to expire."""

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002
        return None

    def free_bytes(self, key: str) -> int | None:  # noqa: ARG002
        return None


def _token(meta: Any) -> str:
    """S3 and memory know e-tags, Google also generations. An e-tag of S3 is a hash of the content, so two equal
    contents have one token: what is replaced conditionally must carry something unique."""
    version = meta.get("version")
    return f"{meta.get('e_tag') or ''}" + (f"\x1f{version}" if version and version != "null" else "")


def _parts(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Regroup chunks into parts: stores refuse small ones."""
    part = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), PART_BYTES):
            part += view[start : start + PART_BYTES]
            if len(part) >= PART_BYTES:
                yield bytes(part)
                part = bytearray()
    if part:
        yield bytes(part)


def open_s3(bucket: str) -> Objects:
    """A bucket on S3 or on anything that speaks it. Path-style requests for an endpoint of your own."""
    from obstore.store import S3Store

    environment = os.environ
    endpoint = next((environment[k] for k in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if environment.get(k)), None)
    keys = bool(environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"))
    unsigned = environment.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")
    no_instance = endpoint is not None or environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
    if not keys and not unsigned and no_instance and not any(environment.get(k) for k in ROLES):
        raise StoreError(f"no credentials for 's3://{bucket}'", remedy=CREDENTIALS_REMEDY)
    config: dict[str, Any] = {"virtual_hosted_style_request": endpoint is None}
    config["region"] = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
    if endpoint is not None:
        config["endpoint"] = endpoint
    options: dict[str, Any] = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(minutes=5)}
    options["allow_http"] = bool(endpoint and endpoint.startswith("http://"))
    uri = f"s3://{bucket}"
    with _speaking(uri, ""):
        store = S3Store(bucket, config=config, client_options=options, retry_config=RETRIES)  # type: ignore[arg-type]
    return Objects(store, uri, bucket=True)


def open_gs(bucket: str) -> Objects:
    """A bucket of Google Cloud Storage; credentials as its own tools find them."""
    from obstore.store import GCSStore

    uri = f"gs://{bucket}"
    with _speaking(uri, ""):
        store = GCSStore(bucket, retry_config=RETRIES)  # type: ignore[arg-type]
    return Objects(store, uri, bucket=True)


_memories: dict[str, Objects] = {}


def open_memory(name: str) -> Objects:
    """The store of this name in this process; made on first use, gone with the process."""
    from obstore.store import MemoryStore

    return _memories.setdefault(name, Objects(MemoryStore(), f"memory://{name}", bucket=False))

"""Object stores through obstore, with errors a reader can act on: the verbs, memory, Google Cloud Storage.

No credential ever stands in an error: causes are cut off and the text is cleaned. S3 has a module of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stageline.errors import StoreError, StoreUnavailableError
from stageline.store.keys import Data, Infos, Names, NotFoundError, ObjectInfo, refuse_large
from stageline.telemetry import hide_remembered

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Result = TypeVar("Result")

PART_BYTES = 16 * 2**20
"""Bytes per request when streaming; chosen here so that a part fits the client's 30 s on a slow line."""
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_TOKEN", "AWS_ACCESS_KEY_ID")
STALE = re.compile(r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|InvalidClientTokenId")
"""What servers answer to credentials that hold no longer; a permission that is missing reads otherwise."""
RETRIES = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}

UNTRUSTED = re.compile(
    r"invalid peer certificate[^\"\n]*|InvalidCertificate\([^\"\n]*|received corrupt message[^\"\n]*"
)
"""What the client says, deep inside its error, when it doesn't believe the server."""


class RefusedError(StoreError):
    """The store knows us not, or not for this. stale: the credentials themselves were refused."""

    stale = False


def clean(text: str) -> str:
    """One line of an error of obstore, without its debug part and without credentials."""
    line = " ".join(text.split("\n\nDebug source")[0].split())
    for name in SECRETS:
        value = os.environ.get(name)
        if value:
            line = line.replace(value, "***")
    line = hide_remembered(line)
    line = re.sub(r"(?i)(x-amz-[a-z-]*|signature|credential|AWSAccessKeyId)=[^&\s]*", r"\1=***", line)
    return re.sub(r"://[^/\s@]*@", "://***@", line)


@contextmanager
def speaking(uri: str, key: str) -> Iterator[None]:
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
            refusal = RefusedError(
                f"{where!r} was refused: {text}", remedy="check the credentials and what they may do"
            )
            refusal.stale = STALE.search(text) is not None
            raise refusal from None
        untrusted = UNTRUSTED.search(str(error))
        if untrusted:
            raise StoreError(f"{where!r} can't be trusted: {untrusted[0]}", remedy=CERTIFICATE_REMEDY) from None
        if re.search(r"(?i)169\.254\.|credential|token", text):
            raise StoreError(f"no credentials for {where!r}: {text}", remedy=credentials_remedy()) from None
        if re.search(r"(?i)error sending request|timed? ?out|connect|dns|\b50[0-9]\b|\b429\b", text):
            raise StoreUnavailableError(
                f"{where!r} did not answer: {text}", remedy="check the endpoint and the network, then start again"
            ) from None
        raise StoreError(f"{where!r} failed: {text}", remedy="check the URI and the store's settings") from None


CREDENTIALS_REMEDY = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a folder with these files in STAGELINE_S3_CREDENTIALS, "
    "or give the process a role"
)
PROFILES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE")
"""Variables of other programs that name credentials in files below ~/.aws."""


def credentials_remedy() -> str:
    """What to set where there are no credentials, and which variables that are set are not read."""
    ignored = [f"{name}={os.environ[name]}" for name in PROFILES if os.environ.get(name)]
    if not ignored:
        return CREDENTIALS_REMEDY
    verb = "is" if len(ignored) == 1 else "are"
    return (
        f"{' and '.join(ignored)} {verb} not read: profiles and their files never are (`aws configure "
        f"export-credentials --format env` prints one's keys); {CREDENTIALS_REMEDY}"
    )


CERTIFICATE_REMEDY = "name the file with the server's CA certificate (PEM) in AWS_CA_BUNDLE"


class Objects:
    """A bucket (or the memory of this process) as a store. uri: for messages.  bucket: whether one can be missing."""

    def __init__(self, store: ObjectStore, uri: str, *, bucket: bool) -> None:
        self.store = store
        self.conditional_store = store
        self.uri = uri
        self._bucket_seen = not bucket

    def _do(self, key: str, call: Callable[[], Result], *, repeatable: bool = True) -> Result:  # noqa: ARG002
        """Every request goes through here. repeatable: the call may be made again."""
        with speaking(self.uri, key):
            return call()

    def put(self, key: str, data: Data) -> None:
        import obstore

        whole = isinstance(data, bytes | Path)
        source = data if isinstance(data, bytes | Path) else _parts(data)
        self._do(key, lambda: obstore.put(self.store, key, source, chunk_size=PART_BYTES), repeatable=whole)

    def copy(self, source: str, target: str) -> None:
        """By the server; through here where it does not (S3 copies no more than 5 GB at once)."""
        import obstore

        try:
            self._do(source, lambda: obstore.copy(self.store, source, target))
        except NotFoundError:
            raise
        except StoreError:
            self.put(target, self.stream(source, PART_BYTES, 0, None))

    def create(self, key: str, data: bytes) -> bool:
        return self._put_if(key, data, "create")

    def replace(self, key: str, data: bytes, token: str) -> bool:
        e_tag, _, version = token.partition("\x1f")
        return self._put_if(key, data, {"e_tag": e_tag, **({"version": version} if version else {})})

    def _put_if(self, key: str, data: bytes, mode: Any) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def attempt() -> bool:
            try:
                obstore.put(self.conditional_store, key, data, mode=mode)
            except AlreadyExistsError:
                return False
            except PreconditionError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return False
            except FileNotFoundError as error:
                # Replacing what is gone: some servers say "no such key" where others say "precondition failed".
                if mode == "create" or "NoSuchBucket" in str(error):
                    raise
                return False
            return True

        return self._do(key, attempt)

    def get(self, key: str) -> tuple[bytes, str]:
        import obstore

        def attempt() -> tuple[bytes, str]:
            result = obstore.get(self.store, key)
            refuse_large(result.meta["size"], f"{self.uri}/{key}")
            return bytes(result.bytes()), _token(result.meta)

        return self._do(key, attempt)

    def stream(self, key: str, chunk_bytes: int, start: int, size: int | None) -> Iterator[bytes]:
        import obstore

        whole: int = self._do(key, lambda: obstore.head(self.store, key))["size"]
        stop = whole if size is None else min(whole, start + size)
        for begin in range(start, stop, chunk_bytes):
            end = min(stop, begin + chunk_bytes)
            yield self._do(key, lambda a=begin, b=end: bytes(obstore.get_range(self.store, key, start=a, end=b)))  # type: ignore[misc]

    def stat(self, key: str) -> ObjectInfo | None:
        import obstore

        try:
            meta = self._do(key, lambda: obstore.head(self.store, key))
        except NotFoundError:
            # A HEAD has no body to tell a missing bucket from a missing key; a listing has.
            if not self._bucket_seen:
                self.folders(key)
            return None
        self._bucket_seen = True
        return ObjectInfo(key, meta["size"], _token(meta))

    def list(self, prefix: str) -> Infos:
        import obstore

        metas = self._do(prefix, lambda: obstore.list(self.store, prefix or None).collect())
        return self._infos(prefix, metas)

    def files(self, prefix: str) -> Infos:
        import obstore

        metas = self._do(prefix, lambda: obstore.list_with_delimiter(self.store, prefix or None))["objects"]
        return self._infos(prefix, metas)

    def folders(self, prefix: str) -> Names:
        import obstore

        result = self._do(prefix, lambda: obstore.list_with_delimiter(self.store, prefix or None))
        self._bucket_seen = True
        places = self._below(prefix, [common.rstrip("/") for common in result["common_prefixes"]])
        return sorted(place.rsplit("/", 1)[-1] for place in places)

    def _infos(self, prefix: str, metas: Iterable[Any]) -> Infos:
        """The objects of a listing."""
        self._bucket_seen = True
        found = {meta["path"]: ObjectInfo(meta["path"], meta["size"], _token(meta)) for meta in metas}
        return [found[key] for key in sorted(self._below(prefix, found))]

    def _below(self, prefix: str, keys: Iterable[str]) -> Names:
        """The keys that a server listed in a folder, without what stands for the folder itself.

        StoreError for others: what is left of one behind the prefix would be taken for a name, and go with a folder
        that is deleted.
        """
        listed = [key for key in keys if not prefix or key != prefix]
        elsewhere = [key for key in listed if prefix and not key.startswith(f"{prefix}/")]
        if elsewhere:
            raise StoreError(
                f"{self.uri}/{prefix} was asked for, and {elsewhere[0]!r:.200} was listed, which does not lie there",
                remedy="the server does not list as S3 does: look at the endpoint and what answers behind it",
            )
        return listed

    def delete(self, keys: Iterable[str]) -> None:
        import obstore

        for key in keys:
            with suppress(NotFoundError):
                self._do(key, lambda k=key: obstore.delete(self.store, k))  # type: ignore[misc]

    def delete_tree(self, prefix: str) -> None:
        import obstore

        keys = [info.key for info in self.list(prefix)]
        if keys:
            self._do(prefix, lambda: obstore.delete(self.store, keys))

    def tidy(self, prefix: str) -> None:
        """Nothing to do: an object appears whole. Uploads in parts that were cut off are the bucket's to expire."""

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


def open_gs(bucket: str) -> Objects:
    """A bucket of Google Cloud Storage; credentials as its own tools find them."""
    from obstore.store import GCSStore

    uri = f"gs://{bucket}"
    with speaking(uri, ""):
        store = GCSStore(bucket, retry_config=RETRIES)  # type: ignore[arg-type]
    return Objects(store, uri, bucket=True)


_memories: dict[str, Objects] = {}


def open_memory(name: str) -> Objects:
    """The store of this name in this process; made on first use, gone with the process."""
    from obstore.store import MemoryStore

    return _memories.setdefault(name, Objects(MemoryStore(), f"memory://{name}", bucket=False))

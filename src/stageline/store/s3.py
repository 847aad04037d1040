"""S3 and everything that speaks it: credentials that change while we run, servers that restart, answers that get lost.

Three things beyond the plain verbs. A request whose credentials are refused is made again once the mounted files say
something new; a server that answered before is asked for a minute before it counts as away; and a conditional write
whose answer got lost is looked up before anybody is told that somebody else was first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from stageline.errors import StoreError, StoreUnavailableError
from stageline.store.credentials import CredentialFiles, credential_files
from stageline.store.keys import NotFoundError
from stageline.store.objects import Objects, RefusedError, credentials_remedy, speaking
from stageline.store.settings import S3Settings

if TYPE_CHECKING:
    from obstore.store import S3Store

Result = TypeVar("Result")
ROLES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
ROTATION_SECONDS = 150.0
"""How long credentials that worked before and are refused now may lag behind: a kubelet takes up to two minutes."""

Retries = Literal["first", "answered", "never"]


class Bucket(Objects):
    """One bucket. make: a client of it.  files: the credentials' folder, if they come from one."""

    def __init__(
        self, make: Callable[[Retries], S3Store], uri: str, files: CredentialFiles | None, settings: S3Settings
    ) -> None:
        super().__init__(make("first"), uri, bucket=True)
        self._make = make
        self.conditional_store = make("never")
        self._files = files
        self._settings = settings
        self._answered = False

    def _do(self, key: str, call: Callable[[], Result], *, repeatable: bool = True) -> Result:
        try:
            result = super()._do(key, call)
        except NotFoundError:
            self._note_answer()
            raise
        except RefusedError as error:
            if self._files is None or not self._files.changed(ROTATION_SECONDS if self._may_lag(error) else 0.0):
                raise
            if not repeatable:
                raise StoreUnavailableError(
                    f"{self.uri}/{key}: the credentials were replaced while it was written",
                    remedy="start again: what was committed before is intact",
                ) from None
            result = super()._do(key, call)
        self._note_answer()
        return result

    def _may_lag(self, error: RefusedError) -> bool:
        """Whether new credentials may be on their way into the mounted folder."""
        return self._answered and error.stale

    def _note_answer(self) -> None:
        """From its first answer on, the server is one that will come back."""
        if not self._answered:
            self._answered = True
            self.store = self._make("answered")

    def _put_if(self, key: str, data: bytes, mode: Any) -> bool:
        """As everywhere, but an answer that got lost is no answer: then the store itself says who wrote.

        The client may not repeat such a request by itself: it would find its own write and call it somebody else's.
        """
        end = time.monotonic() + (self._settings.patience_seconds if self._answered else self._settings.first_seconds)
        lost = False
        for pause in (0.1 * 2 ** min(number, 5) for number in count()):
            try:
                return super()._put_if(key, data, mode) or (lost and self._holds(key, data))
            except StoreUnavailableError:
                lost = True
                if time.monotonic() + pause >= end:
                    raise
            time.sleep(pause)
        raise AssertionError

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.get(key)[0] == data
        except NotFoundError:
            return False


def open_s3(bucket: str) -> Bucket:
    """A bucket on S3 or on anything that speaks it; nothing is asked yet.

    Credentials: the folder of STAGELINE_S3_CREDENTIALS or the default one, else the usual AWS_* keys, else a role.
    """
    settings, files = S3Settings.of_environment(), credential_files()
    if files is None and not _has_credentials(settings):
        raise StoreError(f"no credentials for 's3://{bucket}'", remedy=credentials_remedy())
    uri = f"s3://{bucket}"
    config, options = settings.config(bucket), settings.client_options()

    def make(retries: Retries) -> S3Store:
        from obstore.store import S3Store

        retry_config = {"max_retries": 0} if retries == "never" else settings.retries(answered=retries == "answered")
        extra: dict[str, Any] = {} if files is None else {"credential_provider": files}
        with speaking(uri, ""):
            return S3Store(
                bucket,
                config=config,  # type: ignore[arg-type]
                client_options=options,  # type: ignore[arg-type]
                retry_config=retry_config,  # type: ignore[arg-type]
                **extra,
            )

    return Bucket(make, uri, files, settings)


def _has_credentials(settings: S3Settings) -> bool:
    """Whether the environment says who we are, or the machine may."""
    env = os.environ
    keys = bool(env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_SECRET_ACCESS_KEY"))
    unsigned = env.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")
    no_instance = settings.endpoint is not None or env.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
    return keys or unsigned or not no_instance or any(env.get(name) for name in ROLES)

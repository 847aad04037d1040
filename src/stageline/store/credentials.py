"""Credentials of S3 out of the files of a folder, as Kubernetes mounts a Secret: read anew for every request.

Kubernetes replaces such files all at once, by moving the link `..data`; both keys are read through one resolved target,
so that no pair is mixed of old and new. Whatever was read is told to the redaction before anybody can use it.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stageline.errors import StoreError
from stageline.telemetry import remember_secret

FOLDER_VARIABLE = "STAGELINE_S3_CREDENTIALS"
DEFAULT_FOLDER = Path("/var/run/secrets/stageline/s3")
KEY_FILE, SECRET_FILE, TOKEN_FILE = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
ATTEMPTS = 5
"""Chosen here: the swap of the link takes microseconds, so a second look nearly always suffices."""
POLL_SECONDS = 0.5

Pair = tuple[str, str, str | None]


class CredentialFiles:
    """The folder of a Secret; as obstore's credential provider it is called before every request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used: Pair | None = None
        self.read()

    def __repr__(self) -> str:
        return f"CredentialFiles({str(self.folder)!r})"

    def read(self) -> Pair:
        """Key, secret and token that belong together; StoreError naming what is missing."""
        fault: OSError | None = None
        for _ in range(ATTEMPTS):
            try:
                pair = self._read_once()
            except OSError as error:
                # The folder behind the link goes away a moment after the swap.
                fault, pair = error, None
            if pair is not None:
                for value in pair:
                    remember_secret(value or "")
                return pair
            time.sleep(0.02)
        raise self._missing(fault) from None

    def _read_once(self) -> Pair | None:
        """One look; None if the link was moved meanwhile."""
        link = self.folder / "..data"
        source = link.resolve(strict=True) if link.is_symlink() else self.folder
        token = source / TOKEN_FILE
        pair = (_text(source / KEY_FILE), _text(source / SECRET_FILE), _text(token) if token.exists() else None)
        return pair if not link.is_symlink() or link.resolve() == source else None

    def _missing(self, error: OSError | None) -> StoreError:
        what = "changed while they were read" if error is None else f"can't be read ({error.strerror or error})"
        return StoreError(
            f"the S3 credentials in {str(self.folder)!r} {what}",
            remedy=f"mount a Secret with the keys {KEY_FILE} and {SECRET_FILE} there, or unset {FOLDER_VARIABLE}",
        )

    def __call__(self) -> dict[str, Any]:
        """What obstore wants, already expired: so it asks again for the next request."""
        key, secret, token = self._used = self.read()
        return {
            "access_key_id": key,
            "secret_access_key": secret,
            "token": token,
            "expires_at": datetime.now(UTC),
        }

    def changed(self, wait_seconds: float = 0.0) -> bool:
        """Whether the files say something else than what was last used; waits so long for that."""
        end = time.monotonic() + wait_seconds
        used = self._used
        while self.read() == used:
            if time.monotonic() >= end:
                return False
            time.sleep(POLL_SECONDS)
        return True


def credential_files() -> CredentialFiles | None:
    """The folder the environment names, or the default one where something is mounted there."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return CredentialFiles(Path(named))
    return CredentialFiles(DEFAULT_FOLDER) if (DEFAULT_FOLDER / KEY_FILE).exists() else None


def _text(path: Path) -> str:
    """One credential; the line end that editors add is no part of it."""
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if not text:
        raise OSError(0, f"{path.name} is empty")
    return text

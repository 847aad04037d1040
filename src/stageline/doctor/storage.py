"""Whether the store of a config can be used from here: write, read, conditional writes, delete of a small object."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from stageline.doctor.line import Line, ok, unknown, wrong
from stageline.errors import StagelineError, StoreError
from stageline.store import Store, open_store

FREE_BYTES = 2 * 2**30
"""Less room than that on a local disk is said to be too little. Chosen here."""


def check_store(name: str, root: str, claim_mount: str, secret: str) -> Line:
    """One line about `root`. claim_mount: where pods see a claim, if there is one.  secret: of the pods' keys."""
    if not root:
        return unknown(name, "no root is set", "stageline doctor root=s3://bucket/folder")
    if claim_mount and "://" not in root and not Path(claim_mount).is_dir():
        return unknown(
            name, f"{root!r} lies in a claim, which only pods see", "stageline doctor, in a pod that mounts it"
        )
    try:
        store = open_store(root)
    except StoreError as error:
        if "no credentials" in error.message and secret:
            text = f"there are no credentials for {root!r} here; pods take theirs from the Secret {secret!r}"
            return unknown(name, text, error.remedy)
        return wrong(name, error.message, error.remedy)
    began = time.monotonic()
    fault = _probe(name, store)
    if fault is not None:
        return fault
    room = store.free_bytes()
    if room is not None and room < FREE_BYTES:
        return wrong(name, f"{store.uri}: only {room / 2**20:.0f} MiB are free", "free space, or choose another root")
    free = f", {room / 2**30:.0f} GiB free" if room is not None else ""
    return ok(
        name, f"{store.uri}: written, read, created once, replaced, deleted in {time.monotonic() - began:.2f} s{free}"
    )


def _probe(name: str, store: Store) -> Line | None:
    """What went wrong, or None. Nothing is left behind unless deleting is what fails."""
    key = f"doctor/{uuid.uuid4().hex}"
    step = "write"
    try:
        store.put(key, b"stageline doctor 1")
        step = "read"
        data, token = store.get_with_token(key)
        same = data == b"stageline doctor 1"
        step = "create conditionally"
        won = store.create(key, b"stageline doctor 2")
        step = "replace conditionally"
        replaced, again = (
            store.replace(key, b"stageline doctor 3", token),
            store.replace(key, b"stageline doctor 4", token),
        )
        step = "delete"
        store.delete(key)
    except StagelineError as error:
        if step not in ("write", "delete"):
            _remove(store, key)
        return wrong(name, f"could not {step}: {error.message}", error.remedy)
    if not same:
        return wrong(name, f"{store.uri} does not give back what was written", "use another store")
    if won or not replaced or again:
        return wrong(
            name,
            f"{store.uri} ignores conditional writes: two writers could harm each other",
            "use a server that honours If-None-Match and If-Match (AWS S3, MinIO, Ceph ≥ Squid, versitygw do)",
        )
    return None


def _remove(store: Store, key: str) -> None:
    try:
        store.delete(key)
    except StagelineError:
        return

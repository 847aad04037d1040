"""One door for bytes: a URI chooses local disk, s3://, gs:// or memory://, and all of them behave alike.

Layer: above telemetry and config, below checkpoints; loads no torch. `disk` makes writes durable itself, `objects` goes
through obstore. What holds on every store: a key appears whole or not at all, `create` lets exactly one writer win,
`replace` changes only what its token saw.
"""

from __future__ import annotations

from stageline.store.door import NotFoundError, ObjectInfo, Reference, Store, open_below, open_store

__all__ = ["NotFoundError", "ObjectInfo", "Reference", "Store", "open_below", "open_store"]

"""The S3 of the store's tests."""

from __future__ import annotations

from ..store.conftest import s3_endpoint, s3_environment

__all__ = ["s3_endpoint", "s3_environment"]

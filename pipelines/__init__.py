"""Pipelines: one readable file per family and what it compiles to."""

from __future__ import annotations

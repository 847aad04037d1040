"""YAML and dotted overrides become one frozen, typed config; every fault of it is reported at once.

Layer: the lowest but errors; loads no torch. `document` reads YAML and overrides, `settings` and `cluster` say which
keys there are, `validation` turns one into the other, `canonical` makes fingerprints of the result. A family's `config`
module subclasses `RunConfig` with sections of its own.
"""

from __future__ import annotations

from stageline.config.canonical import (
    canonical_json,
    fingerprint,
    flatten,
    identity,
    is_sealed,
    seal,
    seal_of,
    semantic,
    to_yaml,
)
from stageline.config.cluster import ClusterConfig
from stageline.config.document import apply_overrides, parse_yaml, read_yaml, set_dotted
from stageline.config.fields import (
    OPERATIONAL,
    S,
    SectionError,
    Settings,
    is_operational,
    key_of,
    operational,
)
from stageline.config.settings import NAME_PATTERN, C, RetentionConfig, RunConfig, TrainerConfig
from stageline.config.validation import dotted_fields, json_schema, nearest, validate

__all__ = [
    "NAME_PATTERN",
    "OPERATIONAL",
    "C",
    "ClusterConfig",
    "RetentionConfig",
    "RunConfig",
    "S",
    "SectionError",
    "Settings",
    "TrainerConfig",
    "apply_overrides",
    "canonical_json",
    "dotted_fields",
    "fingerprint",
    "flatten",
    "identity",
    "is_operational",
    "is_sealed",
    "json_schema",
    "key_of",
    "nearest",
    "operational",
    "parse_yaml",
    "read_yaml",
    "seal",
    "seal_of",
    "semantic",
    "set_dotted",
    "to_yaml",
    "validate",
]

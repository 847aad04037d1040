"""YAML and dotted overrides become one frozen, typed config; every fault of it is reported at once.

Layer: the lowest but errors; loads no torch. `document` reads YAML, `overrides` a command line's words, `kinds` what
they mean for a field's type; `settings` and `cluster` say which keys there are, `spellings` how else they are written;
`validation` turns one into the other, `canonical` makes fingerprints of the result. A family's `config` module
subclasses `RunConfig` with sections of its own.
"""

from __future__ import annotations

from stageline.config.canonical import (
    canonical_json,
    fingerprint,
    flatten,
    identity,
    is_sealed,
    once_counted,
    seal,
    seal_of,
    semantic,
    to_yaml,
)
from stageline.config.cluster import ClusterConfig
from stageline.config.defaults import fill_in
from stageline.config.document import parse_yaml, read_yaml, set_dotted
from stageline.config.fields import (
    OPERATIONAL,
    LocalPath,
    S,
    SectionError,
    Settings,
    added,
    is_added,
    is_operational,
    key_of,
    operational,
)
from stageline.config.kinds import home_paths
from stageline.config.overrides import apply_overrides, drop_replaced, replaced_overrides
from stageline.config.settings import (
    NAME_PATTERN,
    C,
    DataSettings,
    EvaluateBase,
    RetentionConfig,
    RunConfig,
    TrainerConfig,
)
from stageline.config.spellings import KeyFault, KeySpellings, contradiction, get_key, note_once, put_key
from stageline.config.validation import dotted_fields, json_schema, nearest, section_of, validate

__all__ = [
    "NAME_PATTERN",
    "OPERATIONAL",
    "C",
    "ClusterConfig",
    "DataSettings",
    "EvaluateBase",
    "KeyFault",
    "KeySpellings",
    "LocalPath",
    "RetentionConfig",
    "RunConfig",
    "S",
    "SectionError",
    "Settings",
    "TrainerConfig",
    "added",
    "apply_overrides",
    "canonical_json",
    "contradiction",
    "dotted_fields",
    "drop_replaced",
    "fill_in",
    "fingerprint",
    "flatten",
    "get_key",
    "home_paths",
    "identity",
    "is_added",
    "is_operational",
    "is_sealed",
    "json_schema",
    "key_of",
    "nearest",
    "note_once",
    "once_counted",
    "operational",
    "parse_yaml",
    "put_key",
    "read_yaml",
    "replaced_overrides",
    "seal",
    "seal_of",
    "section_of",
    "semantic",
    "set_dotted",
    "to_yaml",
    "validate",
]

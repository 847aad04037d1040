"""Credentials out of everything that is written down: events, configs, errors, reports."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"(?i)(^|[_.-])(secret([_-]key)?|(auth|access|api|hf|hub|refresh)[_-]?token|password|passwd|passphrase|credentials?|api[_-]?key|access[_-]?key(_id)?|private[_-]?key)$"
    r"|secret[_-]?access|session[_-]?token"
)
_SECRET_TEXT = (
    (re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"), HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(r"\b(?:hf_|ghp_|gho_|glpat-|xox[bp]-)[A-Za-z0-9_-]{8,}"), HIDDEN),
    (re.compile(r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}"), rf"\1{HIDDEN}"),
    (
        re.compile(r"(?i)([?&](?:X-Amz-(?:Signature|Credential|Security-Token)|signature|sig|token)=)[^&\s\"']+"),
        rf"\1{HIDDEN}",
    ),
    (
        re.compile(
            r"(?i)\b([a-z0-9_.-]*(?:secret(?:[_-](?:access[_-])?key)?|(?:auth|access|session|security|api|hf|hub|refresh)[_-]token|password|passwd|api[_-]?key|access[_-]key(?:[_-]id)?))"
            r"([\"']?\s*[=:]\s*[\"']?)(?!\*\*\*)[^\s\"',;]+"
        ),
        rf"\1\2{HIDDEN}",
    ),
)
_MIN_SECRET = 8
"""Shorter values of secret-looking variables are not searched for in texts: they would blot out ordinary words."""
_remembered: set[str] = set()


def remember_secret(value: str) -> None:
    """Note a credential that no variable holds (read from a file), old ones included: `redact` hides it from now on."""
    if len(value) >= _MIN_SECRET:
        _remembered.add(value)


def hide_remembered(text: str) -> str:
    """The text without the credentials that `remember_secret` was told, longest first."""
    for secret in sorted(_remembered, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def redact(value: Any) -> Any:
    """The value with credentials as `***`: known forms, secret-looking keys, and values of secret-looking variables
    or of files that were read."""
    return _redacted(value, [s for name, s in os.environ.items() if len(s) >= _MIN_SECRET and _is_secret_name(name)])


@lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _redacted(value: Any, of_variables: list[str]) -> Any:
    if isinstance(value, str):
        for secret in of_variables:
            value = value.replace(secret, HIDDEN)
        value = hide_remembered(value)
        for pattern, replacement in _SECRET_TEXT:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(item, str) and item and _is_secret_name(str(key))
            else _redacted(item, of_variables)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_redacted(item, of_variables) for item in value]
    return value


def finite_json(value: Any) -> Any:
    """The value with `nan` and infinities as text, since JSON has no word for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    return value

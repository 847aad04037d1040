"""How Kubernetes spells names, quantities and keys, as types a section can use; all faults of a mapping at once.

Source: apimachinery's `validation` and `resource.Quantity`. Whether a thing of that name exists, only a cluster knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from stageline.config.fields import SectionError
from stageline.config.variables import env_fault

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
"""RFC 1123 label, at most 63 characters: namespaces, pull secrets' parts."""
DNS_SUBDOMAIN = re.compile(rf"{DNS_LABEL.pattern}(\.{DNS_LABEL.pattern})*")
"""RFC 1123 subdomain, at most 253 characters: most object names."""
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]+|)")
_FACTORS = {
    **{"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000)},
    **{unit: Decimal(1000) ** power for power, unit in enumerate("MGTPE", 2)},
    **{unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    r"(?:(?:[A-Za-z0-9](?:[-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?"
    rf"{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][-A-Za-z0-9_.]{{0,127}})?(?:@[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-f]{{32,}})?"
)
"""Source: the grammar of references of the distribution project."""
LARGEST_INT = 2**31 - 1
"""Of the fields of Kubernetes that are int32, or judged as if they were: user ids, deadlines, times to live."""
LEAST_BYTES = 2**20
"""Chosen here: no process starts in less than a mebibyte, so that a smaller amount lacks its unit."""
OWN_PREFIX, OPERATOR_PREFIX = "stageline.dev/", "training.kubeflow.org/"
NAME_KEY, MANAGER_KEY = "app.kubernetes.io/name", "app.kubernetes.io/managed-by"
QUEUE_KEY = "kueue.x-k8s.io/queue-name"
"""Keys of labels and annotations that stageline and the training-operator set themselves; `kube.keys` has the rest."""
_TRACKING = re.compile(
    r"app\.kubernetes\.io/instance|config\.k8s\.io/owning-inventory"
    r"|(argocd\.argoproj\.io|(meta\.)?helm\.sh|([a-z]+\.)?toolkit\.fluxcd\.io|kustomize\.config\.k8s\.io|kapp\.k14s\.io"
    r"|config(sync|management)\.gke\.io|(objectset\.rio|fleet)\.cattle\.io)/.*"
)
"""Keys by which tools that keep a cluster as a repository says (Argo CD, helm, Flux, kapp, Config Sync, Fleet) know
what is theirs, and delete what the repository does not hold."""


def quantity_value(text: str) -> Decimal:
    """The number a quantity means (`500m` is 0.5, `1Gi` 1073741824). ValueError where it is none or negative."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no quantity: a number, then nothing or one of m k M G T P E Ki Mi Gi Ti Pi Ei")
    number, unit = match.groups()
    if unit in _FACTORS:
        return Decimal(number) * _FACTORS[unit]
    return Decimal(number) * Decimal(10) ** int(unit[1:])


def _quantity(value: Any) -> Any:
    """Numbers become texts, as the API server writes them."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = Decimal(repr(value))
        value = format(number.to_integral_value() if number == number.to_integral_value() else number, "f")
    if isinstance(value, str):
        quantity_value(value)
    return value


def _byte_fault(text: str) -> str:
    """What is wrong with a quantity as a number of bytes: `m` are thousandths, and a bare number are single bytes."""
    number, unit = _QUANTITY.fullmatch(text).groups()  # type: ignore[union-attr]
    value = quantity_value(text)
    if unit == "m":
        return f"{text} are thousandths of a byte; write {number}Mi"
    if value != value.to_integral_value():
        return f"{text} are no whole bytes"
    if 0 < value < LEAST_BYTES:
        return f"{text} are {value:f} bytes; write {number}Gi or {number}Mi"
    return ""


def _amount_fault(name: str, text: str) -> str:
    """What is wrong with an amount of a resource: bytes of memory and storage, cores, whole devices."""
    if name in ("memory", "ephemeral-storage", "storage") or name.startswith("hugepages-"):
        fault = _byte_fault(text)
    elif name == "cpu":
        number, unit = _QUANTITY.fullmatch(text).groups()  # type: ignore[union-attr]
        value = quantity_value(text)
        fault = f"{text} are {value:f} cores; write {number} or {number}m" if unit not in ("", "m") else ""
        if not fault and value and value < Decimal("0.001"):
            fault = f"{text} is less than the smallest part of a core, 1m"
    else:
        whole = quantity_value(text) == quantity_value(text).to_integral_value()
        fault = "" if whole else f"{text} is no whole number of devices"
    return f"{name}: {fault}" if fault else ""


def _bytes(text: str) -> str:
    fault = _byte_fault(text)
    if fault:
        raise ValueError(fault)
    return text


def _named(pattern: re.Pattern[str], longest: int, what: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value and (len(value) > longest or not pattern.fullmatch(value)):
            raise ValueError(
                f"{value!r} is no {what}: lower-case letters, digits and inner hyphens"
                f"{' or dots' if pattern is DNS_SUBDOMAIN else ''}, at most {longest} characters"
            )
        return value

    return check


def _image(value: str) -> str:
    if value and not _IMAGE.fullmatch(value):
        raise ValueError(f"{value!r} is no image reference: expected registry/name@sha256:…, or registry/name:tag")
    return value


def key_fault(key: str) -> str:
    """What is wrong with a label or annotation key, `[prefix/]name`."""
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not DNS_SUBDOMAIN.fullmatch(prefix)):
        return f"{key!r}: {prefix!r} before the slash is no DNS name"
    if len(name) > 63 or not _QUALIFIED.fullmatch(name):
        return f"{key!r}: {name!r} is no name of letters, digits, '-', '_', '.', at most 63 characters"
    return ""


def label_fault(key: str, value: str) -> str:
    if value and (len(value) > 63 or not _QUALIFIED.fullmatch(value)):
        return f"{key}: {value!r} is no label value: letters, digits, '-', '_', '.', at most 63 characters"
    return ""


def _rejoin(value: Any) -> Any:
    """Keys that hold dots, which a dotted override took apart: {nvidia: {"com/gpu": 8}} is nvidia.com/gpu again.

    An override wins over the same key of the file.
    """
    if not isinstance(value, Mapping):
        return value
    plain = {key: item for key, item in value.items() if not isinstance(item, Mapping)}

    def walk(prefix: str, item: Mapping[str, Any]) -> None:
        for key, inner in item.items():
            if isinstance(inner, Mapping):
                walk(f"{prefix}{key}.", inner)
            else:
                plain[prefix + key] = inner

    for key, item in value.items():
        if isinstance(item, Mapping):
            walk(f"{key}.", item)
    return plain


def _each(*faults_of: Callable[[str, str], str]) -> Callable[[dict[str, str]], dict[str, str]]:
    """A validator of a mapping that lists every fault of every entry."""

    def check(value: dict[str, str]) -> dict[str, str]:
        found = [fault for key, item in value.items() for rule in faults_of if (fault := rule(key, item))]
        if found:
            raise SectionError(found)
        return value

    return check


def _not_ours(key: str, _: str) -> str:
    own = key.startswith((OWN_PREFIX, OPERATOR_PREFIX)) or key in (NAME_KEY, MANAGER_KEY, QUEUE_KEY)
    return f"{key!r} is set by stageline itself" if own else ""


def _not_tracked(key: str, _: str) -> str:
    tracked = "a tool that deploys from a repository would take the job for one of its objects, and delete it"
    return f"{key!r}: {tracked}" if _TRACKING.fullmatch(key) else ""


def _text(value: Any) -> Any:
    """Numbers in env are texts; true and false are spelled differently by every program, so they are refused."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Name = Annotated[str, AfterValidator(_named(DNS_SUBDOMAIN, 253, "Kubernetes name"))]
"""The name of an object; an empty text names none."""
Names = tuple[Annotated[Name, Field(min_length=1)], ...]
Label = Annotated[str, AfterValidator(_named(DNS_LABEL, 63, "namespace or label"))]
Image = Annotated[str, AfterValidator(_image)]
"""A reference of an image; an empty text is none."""
Quantity = Annotated[str, BeforeValidator(_quantity), WithJsonSchema({"type": ["string", "number"]})]
"""An amount as Kubernetes writes it: 2, 500m, 16Gi."""
Bytes = Annotated[Quantity, AfterValidator(_bytes)]
"""An amount of memory or storage: 16Gi, 500Mi."""
Amounts = Annotated[
    dict[str, Quantity], BeforeValidator(_rejoin), AfterValidator(_each(lambda key, _: key_fault(key), _amount_fault))
]
"""Resource -> quantity. Any name a node may offer: nvidia.com/mig-1g.10gb, rdma/hca_shared_devices_a."""
NodeLabels = Annotated[
    dict[str, str], BeforeValidator(_rejoin), AfterValidator(_each(lambda key, _: key_fault(key), label_fault))
]
Labels = Annotated[
    dict[str, str],
    BeforeValidator(_rejoin),
    AfterValidator(_each(lambda key, _: key_fault(key), label_fault, _not_ours, _not_tracked)),
]
Annotations = Annotated[
    dict[str, str],
    BeforeValidator(_rejoin),
    AfterValidator(_each(lambda key, _: key_fault(key), _not_ours, _not_tracked)),
]
Environment = Annotated[
    dict[str, Annotated[str, BeforeValidator(_text), WithJsonSchema({"type": ["string", "number"]})]],
    AfterValidator(_each(env_fault)),
]

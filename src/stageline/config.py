"""YAML and dotted overrides become one frozen, typed config; every fault of it is reported at once.

Layer: the lowest but errors; loads no torch. A family's `config` module subclasses `RunConfig` with its own sections.
Fingerprints are SHA-256 over canonical JSON of the fields that can change a result; fields declared with
`operational(...)` (paths, worker counts, logging) are left out.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stageline.errors import ConfigError, Faults

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
"""Run names: DNS-safe, at most 40 characters, so that `<run>-<stage>` stays under Kubernetes' 63."""

OPERATIONAL: dict[str, Any] = {"operational": True}


class Settings(BaseModel):
    """Base of every section: frozen, closed, strict about types (an int is not a bool, a string is no number)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


S = TypeVar("S", bound="Settings")


def operational(default: Any, **kwargs: Any) -> Any:
    """A field that cannot change a result, only where or how fast it is made: left out of fingerprints."""
    return Field(default=default, json_schema_extra=OPERATIONAL, **kwargs)


class RetentionConfig(Settings):
    """Which checkpoints of a stage are kept; what a pointer, a parent link or a running save refers to always is."""

    last: int = Field(default=2, ge=1)
    """The newest N."""
    best: int = Field(default=1, ge=0)
    """The best N by the declared metric."""
    every_steps: int = Field(default=0, ge=0)
    """Also every checkpoint whose step is a multiple of K; 0 keeps none for that."""


class TrainerConfig(Settings):
    """What the loop does, the same for every family."""

    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of the stage; null takes `max_epochs`, or else the stage's own default."""
    max_epochs: int | None = Field(default=None, ge=1)
    """Passes over the training data instead of `max_steps`."""
    batch_size: int = Field(default=8, ge=1)
    """Samples per rank and micro-batch. Effective batch = batch_size x accumulate_grad_batches x ranks."""
    accumulate_grad_batches: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """16-mixed needs a GPU: on a CPU it is refused."""
    accelerator: Literal["auto", "cpu", "cuda"] = operational("auto")
    strategy: Literal["auto", "ddp", "fsdp2"] = operational("auto")
    """auto: one process alone, several with DDP; fsdp2 shards parameters, gradients and optimizer state."""
    processes: int = Field(default=1, ge=1)
    """Processes (ranks) per node; torchrun starts more than one. Changes sums and random draws."""
    threads: int = operational(1, ge=1)
    """CPU threads per process inside torch."""
    num_workers: int = operational(0, ge=0)
    """Data loader processes; any number gives the same batches."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate after warm-up, per step; Adam, not scaled by batch."""
    weight_decay: float = Field(default=1e-5, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = Field(default=1e-8, gt=0)
    gradient_clip_val: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; 0 does not clip."""
    schedule: Literal["constant", "cosine", "linear", "onecycle"] = "cosine"
    warmup_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps in which the learning rate rises from (nearly) 0 to its peak."""
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end as a share of the peak (cosine, linear)."""
    use_ema: bool = True
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the n-th update is min(ema_decay, (1+n)/(10+n))."""
    validate_every_steps: int = Field(default=0, ge=0)
    """0: once, at the end."""
    validation_batch_size: int = Field(default=8, ge=1)
    checkpoint_every_steps: int = operational(0, ge=0)
    """0: only at the end and when stopped."""
    keep: RetentionConfig = operational(RetentionConfig())
    async_checkpoint: bool = operational(True)
    """Write checkpoints in a background thread; the loop waits only for the copy to host memory."""
    max_bad_steps: int = Field(default=5, ge=0)
    """Steps in a row whose loss or gradient is not finite are skipped and counted; one more ends the stage."""
    log_every_steps: int = operational(10, ge=1)
    metrics_port: int = operational(0, ge=0, le=65535)
    """Port of `/metrics`; 0 serves none. A port that is taken costs the endpoint, never the run."""
    tensorboard: bool = operational(True)
    process_group_timeout_seconds: int = operational(600, ge=10)
    """How long a rank waits for the others before it calls them lost."""
    shutdown_timeout_seconds: int = operational(120, ge=1)
    """How long torchrun lets ranks finish their step and commit after SIGTERM."""
    max_seconds: float | None = operational(None, gt=0)
    """Stop, commit and ask to be continued after this many seconds."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainerConfig:
        if self.max_steps is not None and self.max_epochs is not None:
            raise ValueError("max_steps and max_epochs contradict each other; give one of them")
        return self


class RunConfig(Settings):
    """The sections every family has. A family's config adds `model`, `data`, `evaluate` and whatever it needs."""

    family: str
    run: str = operational("default")
    """The run's name: its directory is `<root>/runs/<run>/`."""
    root: str = operational(".")
    """Where `runs/` and `cache/` lie: a path or s3://, gs:// (memory:// inside one process)."""
    seed: int = Field(default=0, ge=0)
    stages: tuple[str, ...] | None = None
    """Which stages to train, in the family's order; null takes all."""
    stage_overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Per stage, dotted keys that win over the rest of this file: `{film: {trainer.max_steps: 250}}`."""
    parents: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Per stage and role, a checkpoint of another run to start from, by URI: `{film: {default: runs/a/backbone}}`."""
    trainer: TrainerConfig = TrainerConfig()

    IDENTITY: ClassVar[tuple[str, ...]] = ("family", "seed", "model", "data")
    """Dotted keys whose values make up a run's identity; a family may name others."""

    @field_validator("run")
    @classmethod
    def _dns_safe(cls, value: str) -> str:
        if not re.match(NAME_PATTERN, value):
            raise ValueError(
                f"{value!r} is no run name: lower-case letters, digits and inner hyphens, at most 40 characters"
            )
        return value


C = TypeVar("C", bound=RunConfig)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where 1.1 surprises: `on`, `off`, `yes`, `no` are words, 1e-4 is a number, a key stands once."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$"),
    list("-+0123456789."),
)


def _mapping_once(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: ARG001
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise ConfigError(
                f"the key {key!r} stands twice (line {key_node.start_mark.line + 1})", remedy="keep one of the two"
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_once)


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document. `where` names it in the error."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader subclass
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{where} is not YAML: {error}", remedy="mend the file; `stageline init` writes a valid one"
        ) from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping from a file."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"no config file at {str(path)!r}", remedy="`stageline init --family film_flow --preset tiny` writes one"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}", remedy="give a readable UTF-8 YAML file") from error
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{str(path)!r} holds a {type(raw).__name__}, expected a mapping of sections")
    return raw


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `raw` with `a.b=value` applied; the value is YAML (`[2, 3]`, `null`, `1e-4`, `text`)."""
    result: dict[str, Any] = json.loads(json.dumps(raw))
    faults = Faults(ConfigError, "overrides", "write them as section.key=value")
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key or not all(key.split(".")):
            faults.add(f"{override!r} is not of the form section.key=value")
            continue
        clash = set_dotted(result, key, parse_yaml(text, f"override {override!r}"))
        if clash:
            faults.add(f"{override!r}: {clash} is not a section")
    faults.raise_if_any()
    return result


def set_dotted(target: dict[str, Any], key: str, value: Any) -> str | None:
    """Set `target["a"]["b"]` for the key `a.b`; returns the part that is no mapping, if one is in the way."""
    *path, last = key.split(".")
    node = target
    for depth, part in enumerate(path):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            return ".".join(path[: depth + 1])
        node = child
    node[last] = value
    return None


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to a misspelt one, or None if nothing is near."""
    names = sorted(set(known))
    matches = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return matches[0] if matches else None


def validate(raw: Mapping[str, Any], model: type[S], where: str) -> S:
    """Turn a raw mapping into `model`, or raise one ConfigError that lists every fault."""
    try:
        text = json.dumps(raw)
    except TypeError as error:
        raise ConfigError(
            f"{where}: {error}; config values are texts, numbers, true/false, lists and mappings"
        ) from error
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        faults = Faults(ConfigError, where, "`stageline init` writes a commented config with every key")
        for fault in error.errors(include_url=False):
            code, line = _describe(fault, model)
            faults.add(line, code=code)
        faults.raise_if_any()
        raise


def _describe(fault: Mapping[str, Any], model: type[BaseModel]) -> tuple[str, str]:
    """(code, sentence) of one pydantic fault."""
    path = tuple(fault["loc"])
    name = ".".join(str(part) for part in path) or "config"
    if fault["type"] == "extra_forbidden":
        section = _section_of(model, path[:-1])
        known = list(section.model_fields) if section else []
        near = nearest(str(path[-1]), known)
        if near:
            hint = f"; did you mean {'.'.join([*map(str, path[:-1]), near])!r}?"
        else:
            everywhere = {key.rsplit(".", 1)[-1]: key for key in dotted_fields(model)}
            far = nearest(str(path[-1]), everywhere)
            hint = f"; did you mean {everywhere[far]!r}?" if far else f"; known here: {', '.join(known)}"
        return "E_UNKNOWN_KEY", f"{name}: unknown key{hint}"
    if fault["type"] == "missing":
        return "", f"{name}: required, and absent"
    message = str(fault["msg"]).removeprefix("Value error, ")
    match = re.match(r"^(E_[A-Z_]+): (.*)$", message, re.DOTALL)
    if match:
        return match[1], f"{name}: {match[1]}: {match[2]}"
    shown = fault.get("input")
    found = f" (found {shown!r})" if not isinstance(shown, dict) else ""
    return "", f"{name}: {message}{found}"


def _section_of(model: type[BaseModel], path: Sequence[Any]) -> type[BaseModel] | None:
    """The section class at a path of field names, looking through Optional."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            return None
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return None
        model = inner
    return model


def dotted_fields(model: type[BaseModel], prefix: str = "", *, with_operational: bool = True) -> list[str]:
    """Every leaf key of a config class, dotted (`trainer.keep.last`)."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        if not with_operational and field.json_schema_extra == OPERATIONAL:
            continue
        section = _section_of(model, (name,))
        if section is None:
            keys.append(prefix + name)
        else:
            keys += dotted_fields(section, f"{prefix}{name}.", with_operational=with_operational)
    return keys


def semantic(config: BaseModel) -> dict[str, Any]:
    """The config as a plain dict without its operational fields: what fingerprints are made of."""
    result: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        if field.json_schema_extra == OPERATIONAL:
            continue
        value = getattr(config, name)
        result[name] = semantic(value) if isinstance(value, BaseModel) else json.loads(json.dumps(value))
    return result


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values. For showing what differs."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, whole floats as integers (1.0 and 1 are the same setting)."""

    def normal(item: Any) -> Any:
        if isinstance(item, bool) or item is None or isinstance(item, str):
            return item
        if isinstance(item, float) and item.is_integer() and abs(item) < 2**53:
            return int(item)
        if isinstance(item, Mapping):
            return {str(k): normal(v) for k, v in item.items()}
        if isinstance(item, (list, tuple)):
            return [normal(v) for v in item]
        return item

    return json.dumps(normal(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def identity(config: RunConfig) -> dict[str, Any]:
    """What makes a run this run and no other, as a flat mapping of dotted keys."""
    flat = flatten(semantic(config))
    wanted = type(config).IDENTITY
    return {k: v for k, v in flat.items() if any(k == w or k.startswith(w + ".") for w in wanted)}


def to_yaml(config: BaseModel) -> str:
    """The fully resolved config as YAML, defaults written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

"""The sections every family has, as frozen typed settings: each key with its unit, range and meaning.

A field declared with `operational(...)` (a path, a worker count, a log interval) cannot change a result and stays out
of fingerprints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from stageline.config.bounds import MAX_PIXELS, read_json
from stageline.config.cluster import ClusterConfig, cluster_faults
from stageline.config.fields import LocalPath, SectionError, Settings, added, operational
from stageline.config.kinds import with_whole_numbers
from stageline.config.spellings import KeyFault, KeySpellings

NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}$"
"""Run names: letters, digits, `.`, `_`, `-`, no leading dot, at most 80 characters; jobs make DNS names of them."""
LARGEST_SEED = 2**64 - 1
"""The generators of torch take 64 bits."""


class RetentionConfig(Settings):
    """Which checkpoints of a stage are kept; what a pointer, a parent link or a running save refers to always is."""

    last: int = Field(default=2, ge=1)
    """The newest N."""
    best: int = Field(default=1, ge=0)
    """The best N by the declared metric."""
    every_steps: int = Field(default=0, ge=0)
    """Also every checkpoint whose step is a multiple of K; 0 keeps none for that."""
    unfinished: int = Field(default=1, ge=0)
    """Of trainings that were never finished and whose settings have changed since: the newest N."""


class TrainerConfig(Settings):
    """What the loop does, the same for every family."""

    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of the stage; null takes `max_epochs`, or else the stage's own default."""
    max_epochs: int | None = Field(default=None, ge=1)
    """Passes over the training data instead of `max_steps`."""
    extend: bool = added(False)
    """Go on from this stage's finished, shorter training of the same settings, for a total of `max_steps` or
    `max_epochs`. Needs a constant schedule and no `warmup_fraction`; the result is not that of one long training."""
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
    nodes: int = operational(1, ge=1)
    """Pods of a stage on a cluster, each with `processes` ranks; one machine starts nodes x processes ranks itself."""
    threads: int = operational(1, ge=1)
    """CPU threads per process inside torch."""
    num_workers: int = operational(0, ge=0)
    """Data loader processes; any number gives the same batches."""
    optimizer: Literal["adamw", "muon"] = added("adamw")
    """muon: of the matrices that the stage declares between its hidden layers the direction alone, each of its singular
    values made about equal; AdamW for all else. Both take the same learning rate."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate after warm-up, per step; not scaled by batch."""
    weight_decay: float = Field(default=1e-5, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = Field(default=1e-8, gt=0)
    gradient_clip_val: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; 0 does not clip."""
    schedule: Literal[
        "constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "onecycle", "polynomial"
    ] = "cosine"
    """Learning rate after warm-up; constant and constant_with_warmup are the same, warm-up is a setting of its own."""
    warmup_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps in which the learning rate rises from (nearly) 0 to its peak."""
    warmup_steps: int = added(0, ge=0)
    """The same in optimizer steps, instead of `warmup_fraction`; a stage that is shorter never reaches the peak."""
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end as a share of the peak (cosine, cosine_with_restarts, linear, polynomial)."""
    schedule_cycles: int = added(1, ge=1)
    """Falls from the peak in cosine_with_restarts."""
    schedule_power: float = added(1.0, gt=0)
    """Exponent of polynomial; 1 is linear."""
    use_ema: bool = True
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the n-th update is min(ema_decay, (1+n)/(10+n))."""
    validate_every_steps: int = Field(default=0, ge=0)
    """Also validate after every N steps; 0: once, at the end."""
    validate_every_epochs: int = Field(default=0, ge=0)
    """The same in passes over the training data, instead of `validate_every_steps`."""
    validation_batch_size: int = operational(8, once_counted=True, ge=1)
    """Samples per rank in one forward pass of validation; its results do not depend on it."""
    checkpoint_every_steps: int = operational(0, ge=0)
    """0: only at the end and when stopped."""
    save_best: Literal["always", "when_due"] = added("always")
    """always: a best of validation is saved at once; when_due: only validations at which a save is due (every
    `checkpoint_every_steps`, and the last) can be the best."""
    keep: RetentionConfig = operational(RetentionConfig())
    async_checkpoint: bool = operational(True)
    """Write checkpoints in a background thread; the loop waits only for the copy to host memory."""
    max_bad_steps: int = Field(default=5, ge=0)
    """Steps in a row whose loss or gradient is not finite are skipped and counted; one more ends the stage."""
    log_every_steps: int = operational(10, ge=1)
    metrics_port: int = operational(0, ge=0, le=65535)
    """Port of `/metrics`; 0 serves none. A port that is taken costs the endpoint, never the run."""
    tensorboard: bool = operational(True)
    loggers: tuple[Literal["csv", "mlflow", "wandb"], ...] = operational(())
    """Experiment trackers that get the scalars too: csv writes `scalars.csv` in the stage directory, the others need
    their package and take address and key from the environment."""
    process_group_timeout_seconds: int = operational(600, ge=10)
    """How long a rank waits for the others before it calls them lost."""
    shutdown_timeout_seconds: int = operational(120, ge=1)
    """How long torchrun lets ranks finish their step and commit after SIGTERM."""
    max_seconds: float | None = operational(None, gt=0)
    """Stop, commit and ask to be continued after this many seconds."""

    IN_FINGERPRINTS: ClassVar[Mapping[str, str]] = {"processes": "world_size"}
    ALTERNATIVES: ClassVar[tuple[tuple[str, str], ...]] = (
        ("max_steps", "max_epochs"),
        ("warmup_fraction", "warmup_steps"),
        ("validate_every_steps", "validate_every_epochs"),
    )

    @property
    def world_size(self) -> int:
        """Ranks in all: what sums and random draws depend on, however the ranks are spread over machines."""
        return self.nodes * self.processes

    @model_validator(mode="after")
    def _one_length(self) -> TrainerConfig:
        if self.max_steps is not None and self.max_epochs is not None:
            raise ValueError("max_steps and max_epochs contradict each other; give one of them")
        return self

    @model_validator(mode="after")
    def _one_warmup(self) -> TrainerConfig:
        if self.warmup_fraction and self.warmup_steps:
            raise ValueError("warmup_fraction and warmup_steps contradict each other; give one of them")
        return self

    @model_validator(mode="after")
    def _one_interval(self) -> TrainerConfig:
        if self.validate_every_steps and self.validate_every_epochs:
            raise ValueError("validate_every_steps and validate_every_epochs contradict each other; give one of them")
        return self


class EvaluateBase(Settings):
    """What every family's section `evaluate` has."""

    checkpoints: dict[str, LocalPath] = operational({})
    """Name -> what is evaluated under that name: a stage of this run, or any checkpoint's URI or path, a relative one
    below `root`. Empty: the last stage that was selected and can be evaluated. Weights count in the evaluation's
    fingerprint, not their place."""

    @field_validator("checkpoints")
    @classmethod
    def _plain_names(cls, value: dict[str, str]) -> dict[str, str]:
        wrong = [name for name in value if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or name == "rows"]
        if wrong:
            raise ValueError(
                f"{', '.join(map(repr, wrong))}: names are letters, digits, '_' and '-', beginning with a letter, "
                "and not 'rows'"
            )
        return value


class DataSettings(Settings):
    """What the section `data` of every family has."""

    cache_bytes: int | None = operational(None, ge=1)
    """Most bytes that a pod keeps of what it fetched from an object store; null is half of its free scratch."""
    code: tuple[LocalPath, ...] = operational(())
    """Python files of the user's own that preparing the data executes; their content counts, as part of the data."""
    max_pixels: int = operational(MAX_PIXELS, ge=1)
    """Largest picture file that is decoded, in pixels (height x width) by its header; a larger one is refused."""


class ReuseConfig(Settings):
    """What of other runs below the same root may take the place of this run's own work."""

    across_runs: Literal["ask", "on", "off"] = "ask"
    """Of a stage that another run finished with equal settings, data and parents: on takes that run's checkpoint, ask
    names it in the plan and trains, off does not look."""


class RunConfig(Settings):
    """The sections every family has. A family's config adds `model`, `data`, `evaluate` and whatever it needs."""

    family: str
    run: str = operational("default")
    """The run's name: its directory is `<root>/runs/<run>/`."""
    root: LocalPath = operational(".")
    """Where `runs/` and `cache/` lie: a path (`~` is your home folder) or s3://, gs:// (memory:// inside one
    process)."""
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    """At most 64 bits."""
    code: tuple[LocalPath, ...] = operational(())
    """Python files of the user's own that training, evaluation and prediction execute; their content counts, not
    where they lie."""
    stages: tuple[str, ...] | None = None
    """Which stages to train, in the family's order; null takes the family's usual ones."""
    stage_overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Per stage, dotted keys that win over the rest of this file: `{film: {trainer.max_steps: 250}}`. The same key on
    the command line takes their place."""
    parents: dict[str, dict[str, LocalPath]] = Field(default_factory=dict)
    """Per stage and role, a checkpoint of another run to start from, by URI: `{film: {default: runs/a/backbone}}`;
    `none` starts from scratch, where the stage can."""
    data: DataSettings = DataSettings()
    trainer: TrainerConfig = TrainerConfig()
    reuse: ReuseConfig = operational(ReuseConfig())
    cluster: ClusterConfig = operational(ClusterConfig())
    """How stages run on Kubernetes; read by `stageline job`, `pipeline submit` and the launcher pytorchjob alone."""

    IDENTITY: ClassVar[tuple[str, ...]] = ("family", "seed", "model", "data")
    """Dotted keys whose values make up a run's identity; a family may name others."""

    OF_EVALUATION: ClassVar[tuple[str, ...]] = ()
    """Dotted keys beside the section `evaluate` that no stage's result depends on."""

    SPELLINGS: ClassVar[KeySpellings] = KeySpellings()
    """Other programs' spellings of the family's keys."""

    @classmethod
    def spellings(cls, key: str) -> tuple[str, ...]:
        """All dotted keys that mean the same setting as `key`, itself among them."""
        return cls.SPELLINGS.of(key)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **kwargs: Any) -> Self:
        """Read other spellings first, then validate; the faults of both are reported together."""
        raw = read_json(bytes(json_data) if isinstance(json_data, bytearray) else json_data)
        if not isinstance(raw, Mapping):
            return super().model_validate_json(json_data, **kwargs)
        plain, faults = cls.SPELLINGS.normalise(raw)
        plain = with_whole_numbers(plain, cls)
        lines = [_as_line(fault) for fault in faults]
        try:
            config = super().model_validate_json(json.dumps(plain), **kwargs)
        except ValidationError as error:
            if not lines:  # said again, a number beyond a float's precision would be rounded
                raise
            raise ValidationError.from_exception_data(cls.__name__, [*lines, *_lines_of(error)]) from error
        if lines:
            raise ValidationError.from_exception_data(cls.__name__, lines)
        return config

    @field_validator("run")
    @classmethod
    def _run_name(cls, value: str) -> str:
        if not re.fullmatch(NAME_PATTERN, value):
            raise ValueError(
                f"{value!r} is no run name: letters, digits, '.', '_' and '-', no leading dot, at most 80 characters"
            )
        return value

    @model_validator(mode="after")
    def _cluster_fits(self) -> RunConfig:
        """Where stages change things, each stage's own config is what has to fit; it is checked when it is made."""
        faults = [] if self.stage_overrides else list(cluster_faults(self.cluster, self.trainer))
        if faults:
            raise SectionError(faults)
        return self


C = TypeVar("C", bound=RunConfig)


def _as_line(fault: KeyFault) -> InitErrorDetails:
    error = PydanticCustomError("value_error", "{sentence}", {"sentence": f"{fault.code}: {fault.sentence}"})
    return InitErrorDetails(type=error, loc=fault.path, input=fault.found)


def _lines_of(error: ValidationError) -> list[InitErrorDetails]:
    return [
        InitErrorDetails(type=line["type"], loc=line["loc"], input=line["input"], ctx=line.get("ctx", {}))
        for line in error.errors(include_url=False)
    ]

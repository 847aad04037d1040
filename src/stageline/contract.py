"""What a family is: two records, `FamilyConfig` (torch-free) and `Family`, and the protocol of a stage that is ready.

Below trainer and families, so that both know it; torch is imported for the type checker alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from stageline.config import RunConfig
from stageline.stage import Inheritance, Stage, Stages

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from stageline.objectives.step import StageLoss, StepContext

Item = tuple[int, int]
"""(epoch, index): what the training set is asked for; augmentation is a function of it and the seed."""


Comparison = Literal["equal", "report", "ablatable"]
"""How a fact of the family is compared by a verb: it must be equal; a difference is only reported; or the config may
ask for less than the file has (an ablation)."""


@dataclass(frozen=True)
class FamilyConfig:
    """The torch-free half of a family's record.

    config: its `RunConfig` subclass.  presets: name -> raw config, `tiny` among them.
    facts(config): what a checkpoint of a stage with this (stage) config says about itself, JSON values.
    fact_rules: fact -> how `resume`, `seed` and `evaluate` compare it, e.g. {"vlm_film_trained_stages":
        {"resume": "equal", "seed": "report", "evaluate": "ablatable"}}. A fact without a rule must be equal.
    inherit(parent_facts, config): what becomes of each section of a parent.
    asked(raw_config): the facts a user's own config *states* (absent keys are no statement), for evaluate.
    data_key(config): the part of the config that prepared data depend on (seed included where it matters).
    source_files(config): the files prepared data are read from, sorted; () for synthetic data.
    num_samples(config, prepared_facts): training samples of one epoch, for planning epochs; None where nobody can say.
    summary(config): lines about the model of a stage config, for people who look at a plan.
    name_facts(shapes): the facts that tensor names and shapes of a checkpoint prove; compared whenever one is admitted.
    agree(asked, facts, shapes, where): refuses, in the family's own words, an evaluation whose config states other
        facts than the checkpoint at `where` has; before the general comparison.
    """

    name: str
    config: type[RunConfig]
    stages: Stages
    presets: Mapping[str, Mapping[str, Any]]
    facts: Callable[[Any], dict[str, Any]]
    fact_rules: Mapping[str, Mapping[str, Comparison]]
    inherit: Callable[[Mapping[str, Any], Any], tuple[Inheritance, ...]]
    data_key: Callable[[Any], dict[str, Any]]
    source_files: Callable[[Any], tuple[Path, ...]]
    check: Callable[[Any, Stage], None]
    """Everything that can be refused about a stage's config before data or model are touched."""
    asked: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda _raw: {}
    num_samples: Callable[[Any, Mapping[str, Any]], int | None] = lambda _config, _facts: None
    summary: Callable[[Any], tuple[str, ...]] = lambda _config: ()
    name_facts: Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, Any]] | None = None
    agree: Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, tuple[int, ...]], str], None] = (
        lambda _asked, _facts, _shapes, _where: None
    )


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning-rate factor and a decay rule.

    names: full parameter names.  lr_factor: times `trainer.learning_rate`.  decay: whether weight decay applies.
    """

    name: str
    names: tuple[str, ...]
    lr_factor: float = 1.0
    decay: bool = True


class StageTask(Protocol):
    """One stage of one family, built and ready: model, data, loss, validation."""

    model: nn.Module
    """All of the family's own tensors. State-dict names are the checkpoint's names."""
    train_set: Dataset[Any]
    """Indexed by an `Item`; pure: the same item gives the same sample in any process."""
    val_set: Dataset[Any]
    """Indexed by int."""

    def collate(self, samples: Sequence[Any]) -> Any:
        """Samples -> one batch (a dict or dataclass of tensors; Fabric moves it to the device)."""

    def batch_items(self, epoch: int) -> Sequence[Item] | None:
        """The order of one epoch, if the family wants its own; None takes the loop's f(seed, epoch)."""

    def loss(self, model: nn.Module, batch: Any, context: StepContext) -> StageLoss:
        """Forward pass and loss of one micro-batch. `model` is the wrapped module: call it, not `self.model`."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Groups over the names that this stage trains."""

    def set_train_mode(self, model: nn.Module) -> None:
        """Train mode for what trains, eval mode for frozen parts."""

    def advance(self, step: int, steps: int) -> None:
        """Set schedule buffers for the step to come; they are saved with the model, never derived at load."""

    def validate(self, model: nn.Module, batch: Any) -> Mapping[str, tuple[float, float]]:
        """Metrics of one validation batch as (sum, count); the loop adds them over batches and ranks."""

    def shard_units(self) -> Sequence[nn.Module]:
        """Modules that `fully_shard` wraps one by one, besides the root."""

    def facts(self) -> dict[str, Any]:
        """What the checkpoint says about itself; must equal the torch-free `facts(config)` or the write fails."""


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation.

    metrics: name -> value.  num_samples: how many samples each mean is over.  rows: one mapping per sample (CSV).
    panels: picture name -> (H, W, 3) uint8 arrays in reading order, written as PNG beside the metrics.
    provenance: what was evaluated (decoder stages used, origin, NFE, modes); a report without it is invalid.
    """

    metrics: Mapping[str, Any]
    num_samples: Mapping[str, int]
    rows: Sequence[Mapping[str, Any]]
    panels: Mapping[str, Any]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A family's record.

    build_model(config): the module of a stage config, randomly initialised from config.seed; on the meta device where
        the caller sets one.
    build_task(config, stage, data_dir): model + data + loss of a stage; data_dir holds the prepared data.
    prepare(config, target, progress): write prepared data into the empty local folder `target`; returns facts for the
        manifest (counts, how labels were made). All faults of the source files at once, before the first write.
    evaluate(config, model, data_dir, progress): the family's metrics. config.evaluate says how.
    predict(config, model, paths, target, progress): pictures (or whatever the family makes) into `target`.
    import_legacy(path, config_raw): a file of another program -> (raw config, tensors, report); weights_only.
    section_of(name): which section of the checkpoint a tensor belongs to.
    """

    config: FamilyConfig
    build_model: Callable[[Any], nn.Module]
    build_task: Callable[[Any, str, Path], StageTask]
    prepare: Callable[[Any, Path, Callable[[int, int, str], None]], dict[str, Any]]
    evaluate: Callable[[Any, nn.Module, Path, Callable[[int, int, str], None]], Evaluation]
    predict: Callable[[Any, nn.Module, Sequence[Path], Path, Callable[[int, int, str], None]], list[dict[str, Any]]]
    import_legacy: Callable[[Path, Mapping[str, Any]], tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]]
    section_of: Callable[[str], str]

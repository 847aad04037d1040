"""What a family is: two records, `FamilyConfig` (torch-free) and `Family`, and the protocol of a stage that is ready.

Below trainer and families, so that both know it; torch is imported for the type checker alone. Whatever is asked of a
family about a stage is asked with `(config, stage)`: the config as that stage sees it (`stage.stage_config`) and the
stage's declaration. What a family learns of a parent is a `Parent`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from stageline.checkpoint.usercode import OF_STAGES, SECTIONS, Section
from stageline.config import RunConfig
from stageline.data.baselines import Baselines, BaselineScores
from stageline.data.splits import Progress, Split
from stageline.data.told import Proposal, Words
from stageline.encoders.external import External
from stageline.layers.parameter_groups import ParameterGroup
from stageline.stage import Branch, Inheritance, Stage, Stages, Trains
from stageline.telemetry.pace import StepRate, StepWork

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from stageline.data.arrays import ArrayInput
    from stageline.data.prepared import PreparedData
    from stageline.data.shards import SplitWriter
    from stageline.objectives.step import StageLoss, StepContext, ValidationContext
    from stageline.store import Store

__all__ = ["Arrays", "BaselineScores", "Baselines", "Branch", "Cast", "Comparison", "Evaluation", "External"]
__all__ += ["Family", "FamilyConfig", "ParameterGroup", "Parent", "PredictedFile", "Progress", "Proposal", "SampleKey"]
__all__ += ["Samples", "Split", "StageTask", "StepRate", "StepWork", "Words", "Workspace"]

SampleKey = tuple[int, int]
"""(epoch, index): what the training set is asked for; augmentation is a function of it and the seed."""
Row = Mapping[str, Any]
"""One sample of an evaluation: JSON values, among them `id` (text) and, where the family has modes, `mode`. Times that
were measured end in `_ms` or `_seconds`; all else is the same when the row is made again."""
RowKey = tuple[str, str]
"""(id, mode): which row of an evaluation of one checkpoint it is; mode is "" where the family has none."""
Comparison = Literal["equal", "report", "report_both", "ablatable"]
"""How a fact of the family is compared by a verb: it must be equal; a difference is only reported, or only where both
sides have a value that is not empty; or the config may ask for less than the file has (an ablation)."""
Cast = Literal["bfloat16", "float16"]
"""Number formats that frozen tensors may be held in while a stage trains."""
Arrays = Literal["none", "pictures", "pictures with texts"]
"""What a family makes of arrays among the inputs of `predict`: they are refused, or are pictures, or each is a picture
with a text beside it, `(array, "question")`."""


@dataclass(frozen=True)
class Parent:
    """What a family learns of a parent.

    role: which of the stage's parents.  stage: what its checkpoint is of.  facts: what that checkpoint says, or will
    say, about itself.
    """

    role: str
    stage: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class FamilyConfig:
    """The torch-free half of a family's record.

    config: its `RunConfig` subclass.  presets: name -> raw config, `tiny` among them.
    facts(config, stage): what a checkpoint of this stage says about itself, JSON values.
    fact_rules: fact -> how `resume`, `seed` and `evaluate` compare it, e.g. {"vlm_film_trained_stages":
        {"resume": "equal", "seed": "report", "evaluate": "ablatable"}}. A fact without a rule must be equal.
    inherit(parent, config, stage): what becomes of each section of a parent. A plan compares it with the names of the
        parents' tensors: every section that is loaded has one, and each role gives something.
    splits(config, stage): the prepared splits that the stage reads; `evaluation_splits(config)` those of an evaluation.
    check(config, stage): everything that can be refused about a stage's config before data or model are touched.
    trains(config, stage): which parameters train; the stage's own patterns unless the family says otherwise.
    may_lack_gradient(config, stage): `fnmatch` patterns of trained parameters that may stay without a gradient in the
        first steps (an expert that is rarely chosen); of all others that is an error.
    casts(config, stage): pattern -> number format (`bfloat16`, `float16`) that frozen parameters and buffers are held
        in while the stage trains; they are saved as they were.
    externals(config, stage): weights that are not ours and that the stage needs, read from nothing but the config;
        `encoders.copies.external_folder` gives their files.
    needs(config, stage): optional roles without which a plan refuses this config -> why, without a full stop.
    default_stages(config): what `stages: null` means; opt-in stages never.
    variant(config): the word that tells runs of one stage apart in their directories; "" where there is none.
    run_name(config): the name of a run whose config gives none.
    asked(raw_config): the facts a user's own config *states* (absent keys are no statement), for evaluate.
    num_samples(config, stage, prepared_facts): training samples of one epoch; None where nobody can say. The facts are
        {"splits": {name: what `prepare` returned}}, and {} before the data are prepared.
    summary(config, stage): lines about the model, for people who look at a plan.
    name_facts(shapes): the facts that tensor names and shapes of a checkpoint prove; compared whenever one is admitted.
    agree(asked, facts, shapes, where): refuses, in the family's own words, an evaluation whose config states other
        facts than the checkpoint at `where` has; before the general comparison.
    compared(config, stage, measured): what a comparison tells of an evaluated checkpoint beside its metrics: word ->
        JSON value; of numbers the ratio is told, so what is predicted stands beside what was measured.
        config, stage: the checkpoint's own.  measured: by the evaluation, {} where nothing was.
    branches: name -> another run that the family's pipeline can have beside the main one, to compare the two.
    words: names of modes, metrics and pictures for people.
    step_work(config, stage): what one optimizer step costs, in the unit of the family's rates; None where unknown.
    propose(folder, preset): a config for the pictures in a folder, from a raw preset (None: the family's own choice);
        reads headers and a few files, writes nothing. None where the family has no folders of pictures.
    """

    name: str
    config: type[RunConfig]
    stages: Stages
    presets: Mapping[str, Mapping[str, Any]]
    facts: Callable[[Any, Stage], dict[str, Any]]
    fact_rules: Mapping[str, Mapping[str, Comparison]]
    inherit: Callable[[Parent, Any, Stage], tuple[Inheritance, ...]]
    splits: Callable[[Any, Stage], tuple[Split, ...]]
    evaluation_splits: Callable[[Any], tuple[Split, ...]]
    check: Callable[[Any, Stage], None]
    trains: Callable[[Any, Stage], Trains] = lambda _config, stage: Trains(stage.trains)
    may_lack_gradient: Callable[[Any, Stage], tuple[str, ...]] = lambda _config, _stage: ()
    casts: Callable[[Any, Stage], Mapping[str, Cast]] = lambda _config, _stage: {}
    externals: Callable[[Any, Stage], tuple[External, ...]] = lambda _config, _stage: ()
    needs: Callable[[Any, Stage], Mapping[str, str]] = lambda _config, _stage: {}
    default_stages: Callable[[Any], Collection[str]] | None = None
    variant: Callable[[Any], str] = lambda _config: ""
    run_name: Callable[[Any], str] | None = None
    asked: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda _raw: {}
    num_samples: Callable[[Any, Stage, Mapping[str, Any]], int | None] = lambda _config, _stage, _facts: None
    summary: Callable[[Any, Stage], tuple[str, ...]] = lambda _config, _stage: ()
    name_facts: Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, Any]] | None = None
    agree: Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, tuple[int, ...]], str], None] = (
        lambda _asked, _facts, _shapes, _where: None
    )
    compared: Callable[[Any, Stage, Mapping[str, float]], Mapping[str, Any]] = lambda _config, _stage, _measured: {}
    branches: Mapping[str, Branch] = field(default_factory=dict)
    words: Words = field(default_factory=Words)
    step_work: Callable[[Any, Stage], StepWork | None] = lambda _config, _stage: None
    propose: Callable[[Path, str | None], Proposal] | None = None

    def selected(self, config: RunConfig) -> tuple[Stage, ...]:
        """The stages of this run, in the family's order; ConfigError with every fault of the keys that name stages."""
        default = None if self.default_stages is None else tuple(self.default_stages(config))
        return self.stages.selected(config, default)

    def evaluated(self, config: RunConfig) -> Stage | None:
        """The stage that is evaluated where the config names no checkpoints: the last selected one that can be."""
        return next((stage for stage in reversed(self.selected(config)) if not stage.not_evaluated), None)


@dataclass(frozen=True)
class Workspace:
    """What a family may use between loading and the first step.

    store: the run's root; caches shared by its runs lie below `cache/`.
    contents: role -> content of that parent, and name -> digest of each external: keys for what is derived from them.
    rank, size: this process among the others; each may do its share.
    """

    store: Store
    contents: Mapping[str, str] = field(default_factory=dict)
    rank: int = 0
    size: int = 1


class Samples(Protocol):
    """A set of samples: training sets are indexed by a `SampleKey`, validation sets by an int."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: Any, /) -> Any: ...


class StageTask(Protocol):
    """One stage of one family, built and ready: model, data, loss, validation."""

    model: nn.Module
    """All of the family's own tensors. State-dict names are the checkpoint's names."""

    @property
    def train_set(self) -> Samples:
        """Indexed by a `SampleKey`; pure: the same key gives the same sample in any process."""

    @property
    def val_set(self) -> Samples:
        """Indexed by int."""

    def collate(self, samples: Sequence[Any]) -> Any:
        """Samples -> one batch (a dict or dataclass of tensors; Fabric moves it to the device)."""

    def batch_items(self, epoch: int) -> Sequence[SampleKey] | None:
        """The order of one epoch, if the family wants its own; None takes the loop's f(seed, epoch)."""

    def loss(self, model: nn.Module, batch: Any, context: StepContext) -> StageLoss:
        """Forward pass and loss of one micro-batch. `model` is the wrapped module: call it, not `self.model`."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Groups over the names that this stage trains."""

    def set_train_mode(self, model: nn.Module) -> None:
        """Train mode for what trains; modules in which nothing trains are put into eval mode after it."""

    def advance(self, step: int, steps: int) -> None:
        """Set schedule buffers for the step to come; they are saved with the model, never derived at load."""

    def validation_key(self, index: int) -> Any:
        """What must be equal among the validation samples of one batch: the size of a picture, say, or always the same.

        index: into `val_set`. Keys can be compared and sorted; asking for one reads no sample.
        """

    def validate(self, model: nn.Module, batch: Any, context: ValidationContext) -> Mapping[str, tuple[float, float]]:
        """Metrics of one validation batch as (sum, count) over its samples; the loop adds them over batches and ranks.

        Each sample's part is a function of (seed, sample): random numbers come from `context.rng(row)` alone. Pictures
        for people go to `context.show`, of the first `context.num_shown` rows.
        """

    def shard_units(self) -> Sequence[nn.Module]:
        """Modules that `fully_shard` wraps one by one, besides the root."""

    def facts(self) -> dict[str, Any]:
        """What the checkpoint says about itself; must equal the torch-free `facts(config, stage)`."""


class Emit(Protocol):
    """Takes the finished rows of an evaluation.

    Rows are kept from the end of their batch on, even if the process is killed; a family that ends no batch loses at
    most the rows of a few seconds.

    in_full: single rows are made again, to be looked at: each gets every picture and file that there can be of it, not
    only those that a whole evaluation has room for.
    """

    @property
    def in_full(self) -> bool: ...

    def __call__(
        self, row: Row, pictures: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """One row. row: with `id` and, where there are modes, `mode`; no other row has both.

        pictures: name without suffix -> (H, W, 3) or (H, W) uint8 array; one thing in each, without captions, which
            the report writes. The name is `<what>-<number>`, or `<what>_<mode>-<number>`; what: of `Words.pictures`;
            number: of the row's id in the order in which ids come, from 0.
        files: name -> bytes (a clip, a text).
        """

    def end_batch(self) -> None:
        """Keep every row that came so far."""


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation of one checkpoint.

    metrics: name -> number, or None (with a line in `reasons`) where there is none. A number that is not finite counts
        as none.
    num_samples: how many samples each mean is over.
    rows: those that were not given to `emit`.
    panels: pictures that were not given to `emit`, as it takes them.
    provenance: what was evaluated (decoder stages used, origin, NFE, modes); a report without it is invalid.
    reasons: metric -> why it is None.  files: name -> bytes of further files.
    measured: speeds, seconds and bytes of memory, seen while rows were made; no part of the result. After an
        interruption they are of the rest only.
    """

    metrics: Mapping[str, float | None]
    num_samples: Mapping[str, int]
    rows: Sequence[Row]
    panels: Mapping[str, Any]
    provenance: Mapping[str, Any]
    reasons: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PredictedFile:
    """A file among the values of a prediction: callers in Python get its content, `predict` writes it.

    name: with the suffix that says what it is (`room.png`, `voice.mp4`, `mesh.ply`), no folder; no other of the call's.
    content: a text, the file's bytes, or an array: (H, W) or (H, W, 3) uint8 for `.png`, any numbers for `.npy`.
    """

    name: str
    content: str | bytes | NDArray[Any]


@dataclass(frozen=True)
class Family:
    """A family's record.

    build_model(config, stage): the module of a stage, randomly initialised from config.seed; on the meta device where
        the caller sets one.
    build_task(config, stage, data): model + data + loss of a stage; `data` holds the splits that it reads.
    derive(task, parents): called once in a stage's life, on every rank, after the weights of its parents (role -> what
        is known of each) were loaded and before anything else happens to the model: tensors that start fresh may be
        filled from those that were loaded, or from the task's data. Never when a stage goes on.
    begin(task, workspace): called once on every rank after the weights are loaded and before the first step: feature
        caches and whatever else is derived from weights.
    prepare(config, split, writer, progress): write the rows of one split, and note those of its sources that cannot be
        used (`writer.set_aside`); returns facts for its manifest (counts, how labels were made), JSON values; `told`
        ([words, text] pairs) and `warnings` (sentences) among them are shown to people. What is written depends on
        `split.key` and the source files alone.
        config: of the run.
    evaluate(config, model, data, finished, emit, progress): the family's metrics. config.evaluate says how.
        finished: the rows that an interrupted evaluation left, which are not computed again; the result must be the
        same as without them, bit for bit, so all randomness is a function of seed and row. emit: takes each new row.
    predict(config, model, inputs, progress): whatever the family makes of inputs (paths or texts, read by itself, and
        `ArrayInput`s, where `arrays` says so): one mapping per result as it comes, of JSON values and `PredictedFile`s.
        It writes nothing; every fault of the inputs is told before the first result. The same pixels give the same,
        bit for bit, from a file or an array, whatever its name.
    arrays: what arrays among the inputs of `predict` are; checked before the family sees them.
    import_files(paths, config_raw, stage): files of another program -> (raw config, tensors, report); weights_only.
        stage: "" where the files themselves say it.
    section_of(name): which section of the checkpoint a tensor belongs to.
    load_externals(config, stage, model): copy the tensors that externals supply into a model that was just built,
        before any checkpoint is read into it. Needed where an external has patterns.
    exports(config, stage, tensors): files for other programs, made of the stage's own tensors (averaged ones where
        there are such) on the CPU: key below the checkpoint -> bytes, or tensors for a safetensors file. Pure.
    formats: name -> what `checkpoint export --format` writes by it: given (config, stage, tensors, folder), all tensors
        of a checkpoint, those that its parents hold too, as files for other programs in an empty folder; returns them.
    reads_with_code: whether training, evaluation and prediction need the user's files of `data.code` too: a reader of
        the user's own. Preparing always has them.
    demo_data(folder): tiny data and tiny base weights in a folder in which the family's guide was laid out, and its
        configs changed so that the guide's commands run there as they are; returns names of what it wrote.
    check_sources(config, splits, progress): every fault of the source files of the splits that are to be made, at once;
        called before any of them is. QuarantineError where more rows cannot be used than the config allows.
    baselines: trivial methods on the same data, which an evaluation is compared with.
    """

    config: FamilyConfig
    build_model: Callable[[Any, Stage], nn.Module]
    build_task: Callable[[Any, Stage, PreparedData], StageTask]
    prepare: Callable[[Any, Split, SplitWriter, Progress], dict[str, Any]]
    evaluate: Callable[[Any, nn.Module, PreparedData, Mapping[RowKey, Row], Emit, Progress], Evaluation]
    predict: Callable[[Any, nn.Module, Sequence[str | Path | ArrayInput], Progress], Iterator[Mapping[str, Any]]]
    import_files: Callable[
        [Sequence[Path], Mapping[str, Any], str], tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]
    ]
    section_of: Callable[[str], str]
    load_externals: Callable[[Any, Stage, nn.Module], None] | None = None
    exports: Callable[[Any, Stage, Mapping[str, Tensor]], Mapping[str, bytes | Mapping[str, Tensor]]] = (
        lambda _config, _stage, _tensors: {}
    )
    formats: Mapping[str, Callable[[Any, Stage, Mapping[str, Tensor], Path], Sequence[Path]]] = field(
        default_factory=dict
    )
    derive: Callable[[Any, Mapping[str, Parent]], None] = lambda _task, _parents: None
    begin: Callable[[Any, Workspace], None] = lambda _task, _workspace: None
    reads_with_code: bool = False
    check_sources: Callable[[Any, Sequence[Split], Progress], None] = lambda _config, _splits, _progress: None
    demo_data: Callable[[Path], list[str]] | None = None
    baselines: Baselines | None = None
    arrays: Arrays = "none"

    @property
    def code_sections(self) -> tuple[Section, ...]:
        """Whose files of the user's own are executed before the family's readers are asked for anything."""
        return SECTIONS if self.reads_with_code else OF_STAGES

"""Seconds of a training step of every stage at the presets' sizes, on the device that there is, and the rates of
`stageline.families.STEP_RATES` that they give: what a plan expects of a first run.

Run: `python benchmarks/bench_step_rates.py`; a minute at most on one GPU or on one CPU thread (`--seconds`). A step is
forward, backward, clipping, AdamW and the average of weights, in the preset's own precision and micro-batches, on
made-up tensors: reading and augmenting data are not in it. Models of published size are left to a GPU. Stage `finetune`
needs peft, and without it is left out by name. The last lines are the entries of the table that the measurements give,
each with the smallest and largest ratio of what it says to what was measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from stageline.config import RunConfig
from stageline.contract import StepRate, StepWork
from stageline.families import family_config, parse_config, raw_preset
from stageline.families.film_flow import losses
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.panorama_vlm.config import PanoramaVlmConfig
from stageline.families.panorama_vlm.cost import RESPONSE_TOKENS, TEXT_TOKENS
from stageline.layers.ema import Ema
from stageline.objectives.flow import sample_times, straight_path
from stageline.objectives.step import StepContext
from stageline.stage import Stage, stage_config

WARM, ROUNDS = 3, 15
IMAGE_ID = 1
Pass = Callable[[], Tensor]
"""Forward pass and loss of one micro-batch: the mean loss, with a graph."""


@dataclass(frozen=True)
class Case:
    """A stage of a preset. large: for a GPU alone.  overrides: of the preset, as on the command line."""

    family: str
    preset: str
    stage: str
    overrides: tuple[str, ...] = ()
    large: bool = False


ROOMS = ("data.name=rooms", "data.csv_train=[]", "data.csv_val=[]", "data.csv_test=[]")
CASES = (
    Case("film_flow", "tiny", "backbone"),
    Case("film_flow", "tiny", "film"),
    Case("film_flow", "folder-small", "backbone"),
    Case("film_flow", "octa500", "film", large=True),
    Case("film_flow", "xca", "film", large=True),
    *(Case("panorama_vlm", "tiny", stage) for stage in ("vision", "resampler", "finetune")),
    *(Case("panorama_vlm", "base", stage, ROOMS, large=True) for stage in ("vision", "resampler", "finetune")),
)


@dataclass(frozen=True)
class Measured:
    """seconds: median of one optimizer step. work: what the family says it costs."""

    case: Case
    seconds: float
    work: StepWork


def film_flow_pass(config: FilmFlowConfig, model: nn.Module, device: torch.device) -> Pass:
    """A micro-batch of crops with conditions, and its loss as the stage's task makes it."""
    from stageline.families.film_flow.facts import condition_features

    settings, batch, side = config.model, config.trainer.batch_size, config.data.image_size
    image = torch.rand(batch, settings.image_channels, side, side, device=device) * 2 - 1
    mask = (torch.rand(batch, 1, side, side, device=device) > 0.8).float()
    condition = None
    if settings.use_vlm_film:
        vectors = torch.randn(batch, condition_features(config), device=device)
        condition = ConditionBundle(vectors, torch.ones(batch, dtype=torch.bool, device=device))
    rng = torch.Generator().manual_seed(0)

    def one() -> Tensor:
        x_1 = mask * 2 - 1
        x_0 = torch.randn(x_1.shape, generator=rng).to(device)
        t = sample_times(batch, settings.t_sampling, rng).to(device)
        out = model(straight_path(x_0, x_1, t), t, image, condition, None, full=True)
        terms = losses.mask_loss(out.prediction.float(), mask, settings.loss)
        if out.junction_logits is not None:
            terms["junction"] = losses.junction_focal(out.junction_logits, mask)
        return torch.stack([value.mean() for value in terms.values()]).sum()

    return one


def panorama_pass(config: PanoramaVlmConfig, stage: Stage, model: Any, device: torch.device) -> Pass:
    """A micro-batch of panoramas: all views in stage `vision`, kept features with a question each in the others."""
    from stageline.families.panorama_vlm.data.sets import Batch, Picture
    from stageline.families.panorama_vlm.data.text import TextBatch, response_loss
    from stageline.families.panorama_vlm.vision_loss import VisionLoss

    batch = config.trainer.batch_size
    if stage.name == "vision":
        from stageline.families.panorama_vlm.model.assembly import build_tower

        vision_loss = VisionLoss(config)
        if config.vicreg.anchor_weight > 0:
            with device:
                vision_loss.set_anchor(build_tower(config))
        height = 2 * config.tile_size
        pictures = [
            Picture(n, torch.randint(0, 256, (3, height, 2 * height), dtype=torch.uint8, device=device))
            for n in range(batch)
        ]
        panoramas = Batch(pictures, torch.arange(batch, device=device))
        context = StepContext(step=0, progress=0.0, rng=torch.Generator().manual_seed(0))
        return lambda: model(vision_loss.terms, panoramas, context)[0]
    views, tokens = model.token_dirs.shape[:2]
    features = torch.randn(batch, views, tokens, config.model.vision.hidden_size, device=device)
    length = model.resampler.num_tokens + TEXT_TOKENS
    ids = torch.randint(2, 200, (batch, length), device=device)
    ids[:, 8 : 8 + model.resampler.num_tokens] = IMAGE_ID
    labels = torch.full_like(ids, -100)
    labels[:, -RESPONSE_TOKENS:] = ids[:, -RESPONSE_TOKENS:]
    positions = torch.arange(length, device=device).expand(batch, -1)
    text = TextBatch(ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, labels=labels)

    def one() -> Tensor:
        image_tokens = model.image_tokens(features).tokens
        total, count = response_loss(model.hidden(image_tokens, text, IMAGE_ID), model.lm_head, text.labels)
        return total / count

    return one


def build(case: Case, device: torch.device) -> tuple[Callable[[], object], StepWork]:
    """One optimizer step of a case, and what its family says that it costs."""
    family = family_config(case.family)
    config = parse_config(raw_preset(case.family, case.preset), ["run=rates", *case.overrides])
    stage = family.stages[case.stage]
    own: Any = stage_config(config, stage)
    work = family.step_work(own, stage)
    assert work is not None
    model = _model(case.family, own, stage, device)
    trains = family.trains(own, stage)
    names = [name for name, _ in model.named_parameters() if trains.matches(name)]
    kept = set(names)
    is_bfloat16 = own.trainer.precision == "bf16-mixed"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
        if name not in kept and is_bfloat16:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.to(device).train()
    one = film_flow_pass(own, model, device) if case.family == "film_flow" else panorama_pass(own, stage, model, device)
    return _step(own, model, names, one, device, bfloat16=is_bfloat16), work


def _model(family: str, config: Any, stage: Stage, device: torch.device) -> nn.Module:
    with device:
        if family == "film_flow":
            from stageline.families.film_flow.model.construction import build_model as build_flow

            return build_flow(config)
        from stageline.families.panorama_vlm.model.assembly import build_model

        return build_model(config, stage)


def _step(
    config: RunConfig, model: nn.Module, names: Sequence[str], one: Pass, device: torch.device, *, bfloat16: bool
) -> Callable[[], object]:
    settings = config.trainer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    ema = Ema(model, names, settings.ema_decay) if settings.use_ema else None

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for _ in range(settings.accumulate_grad_batches):
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                loss = one()
            torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained, settings.gradient_clip_val)
        optimizer.step()
        if ema is not None:
            ema.update(model)

    return step


def median(step: Callable[[], object], device: torch.device, most: float) -> float:
    """Seconds of one step, after some that do not count. most: seconds after which no further one begins."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    begin = now()
    for _ in range(WARM):
        step()
    taken: list[float] = []
    while len(taken) < ROUNDS and (not taken or now() - begin < most):
        start = now()
        step()
        taken.append(now() - start)
    return sorted(taken)[len(taken) // 2]


def fit(rows: Sequence[Measured], device: str) -> StepRate:
    """Seconds of a pass however small, and of its work: least squares of relative errors, neither below 0."""
    design = torch.tensor(
        [[m.work.passes / m.seconds, m.work.passes * m.work.amount / m.seconds] for m in rows], dtype=torch.float64
    )
    scale = design.amax(dim=0)
    ones = torch.ones(len(rows), 1, dtype=torch.float64)
    found = [float(value) for value in torch.linalg.lstsq(design / scale, ones).solution[:, 0] / scale]
    if min(found) < 0 or len(rows) < 2:
        alone = [float(design[:, k].sum() / design[:, k].square().sum()) for k in (0, 1)]
        found = [alone[0], 0.0] if found[1] < 0 else [0.0, alone[1]]
    per_pass, per_amount, up_to = (float(f"{v:.2g}") for v in (*found, max(m.work.amount for m in rows)))
    return StepRate(per_pass, per_amount, up_to, device)


def main() -> int:
    """Measure what the device is for; returns 1 where nothing could be measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=55.0, help="no stage is begun after them")
    arguments = parser.parse_args()
    begin = time.monotonic()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "one thread of this CPU"
    print(f"seconds of an optimizer step on {name}, torch {torch.__version__}")
    cases = [case for case in CASES if device.type == "cuda" or not case.large]
    share = arguments.seconds / len(cases) / 2
    measured: list[Measured] = []
    for case in cases:
        label = f"{case.family} {case.preset} {case.stage}"
        if time.monotonic() - begin > arguments.seconds:
            print(f"  {label:<36} not measured: the time is up")
            continue
        if case.stage == "finetune" and find_spec("peft") is None:
            print(f"  {label:<36} not measured: its adapters need peft")
            continue
        step, work = build(case, device)
        seconds = median(step, device, share)
        del step
        if device.type == "cuda":
            torch.cuda.empty_cache()
        measured.append(Measured(case, seconds, work))
        told = f"{work.passes} micro-batches of {work.amount:.3g}"
        print(f"  {label:<36} {1000 * seconds:9.1f} ms   {told}", flush=True)
    print("\nentries of STEP_RATES in src/stageline/families/__init__.py")
    for family in dict.fromkeys(m.case.family for m in measured):
        rows = [m for m in measured if m.case.family == family]
        rate = fit(rows, name)
        ratios = [(rate.seconds(m.work) or 0.0) / m.seconds for m in rows]
        numbers = f"{rate.per_pass:g}, {rate.per_amount:g}, {rate.up_to:g}"
        entry = f'("{family}", "{device.type}"): StepRate({numbers}, "{name}"),'
        print(f"    {entry}  # {min(ratios):.2f} to {max(ratios):.2f} of what was measured")
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())

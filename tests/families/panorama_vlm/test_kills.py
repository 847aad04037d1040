"""Check 17: a process that is killed while it saves leaves a state to go on from, and what goes on ends the same."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import RankEnd, run_ranks
from runs import small, trained

from stageline.checkpoint.layout import POINTERS, CheckpointRef, StageDir
from stageline.checkpoint.metadata import METADATA_NAME
from stageline.checkpoint.verify import verify
from stageline.families import load_family
from stageline.families.panorama_vlm.config import STAGES, PanoramaVlmConfig
from stageline.families.panorama_vlm.model.assembly import build_tokenizer
from stageline.stage import stage_config
from stageline.telemetry import read_events
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

KILLS, STEPS = 20, 12
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def is_write(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audited event changes a file of a checkpoint of stage `finetune`."""
    if not event.startswith(("open", "os.")) or not arguments:
        return False
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
        return False
    if event in ("os.listdir", "os.scandir"):
        return False
    return any(is_in_checkpoint(str(one)) for one in (*arguments[:2], *open_folders()))


def is_in_checkpoint(path: str) -> bool:
    return "/finetune/" in path and "/step-" in path


def open_folders() -> list[str]:
    """Folders that are open now: what the store changes it names relative to one, which the event does not tell."""
    found = []
    for descriptor in range(3, 64):
        with suppress(OSError):
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            found += [str(path)] if path.is_dir() else []
    return found


def finetuned(config: PanoramaVlmConfig, data: str, last: int | None) -> int:
    """Train stage `finetune`; SIGKILL at the `last` change of a file of a checkpoint. Returns how many there were."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if is_write(event, arguments):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    train_stage(config, "finetune", data=data)
    return seen


def stage_dir(config: PanoramaVlmConfig) -> StageDir:
    return StageDir(config.root, config.run, "finetune", "anyres-e2p_mlp")


def newest(config: PanoramaVlmConfig) -> CheckpointRef | None:
    """The newest checkpoint; everything committed is whole, and a pointer names nothing else."""
    left = stage_dir(config)
    refs = left.committed()
    assert not [fault for ref in refs for fault in verify(ref)]
    for name in POINTERS:
        pointed = left.pointer(name)
        assert pointed is None or pointed.digest in {ref.digest for ref in refs}
    return refs[-1] if refs else None


def losses(config: PanoramaVlmConfig) -> dict[int, float]:
    """Step -> loss, as it stands in the events."""
    return {e["step"]: e["loss"] for e in read_events(stage_dir(config).store) if e["event"] == "step"}


@pytest.mark.slow
@pytest.mark.ranks
def test_twenty_kills_while_saving_change_nothing(tmp_path: Path) -> None:
    """Check 17: children of one warm process, each killed at a random moment of a save, none of which costs a step
    that was committed; in the end losses and content are those of a run that was left alone, bit for bit."""
    keys = ("trainer.batch_size=4", "trainer.checkpoint_every_steps=1", "trainer.log_every_steps=1")
    common = (*keys, f"trainer.max_steps={STEPS}", "trainer.keep.last=3", "stages=[resampler,finetune]")
    first = small(tmp_path, "trainer.max_steps=1", "stages=[resampler]", run="first")
    data = str(prepare_data(first).reference)

    def forked(name: str, body: Callable[[], Any]) -> RankEnd:
        (end,) = run_ranks(lambda _: body(), 1, tmp_path / name)
        return end

    parent = forked("first", lambda: str(trained(first, "resampler")["resampler"].uri)).value
    whole, killed = (small(tmp_path, *common, f"parents.finetune.default={parent}", run=r) for r in ("whole", "killed"))
    own = stage_config(whole, STAGES["finetune"])
    load_family("panorama_vlm").build_model(own, STAGES["finetune"])  # imports, once for all children
    build_tokenizer(own, STAGES["finetune"])
    end = forked("whole", lambda: finetuned(whole, data, None))
    assert end.code == 0, end.output
    per_save = end.value // STEPS
    rng, steps, unfinished = np.random.default_rng(0), 0, 0
    for kill in range(KILLS):
        moment = int(rng.integers(1, per_save + per_save // 4))
        end = forked("killed", lambda: finetuned(killed, data, moment))  # noqa: B023
        assert end.code == -signal.SIGKILL, (kill, moment, end)
        found = newest(killed)
        now = 0 if found is None else found.metadata.step
        assert now >= steps, "a step that was committed is lost"
        steps = now
        left = stage_dir(killed)
        unfinished += any(not left.step_store(name).exists(METADATA_NAME) for name in left.step_dirs())
    assert unfinished >= KILLS // 4, "kills hit what they were aimed at"
    assert 0 < steps < STEPS
    end = forked("killed", lambda: finetuned(killed, data, None))
    assert end.code == 0, end.output
    one, other = newest(whole), newest(killed)
    assert one is not None
    assert other is not None
    assert (other.metadata.final, other.metadata.step) == (True, STEPS)
    assert other.content == one.content
    assert losses(killed) == losses(whole)
    assert len(losses(whole)) == STEPS

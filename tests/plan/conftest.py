"""A root with prepared data and committed checkpoints, made by the real writer from tiny tensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from stageline.checkpoint.commit import CheckpointWriter, Snapshot
from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import BestRecord, ExternalRecord, GroupRecord, ParentRecord, Provenance
from stageline.cli.configuration import raw_preset
from stageline.config import RunConfig
from stageline.data.prepared import Prepared
from stageline.encoders.lock import external_digests, read_lock
from stageline.families import family_config, parse_config
from stageline.stage import stage_config, stage_fingerprint, stage_settings
from stageline.store import open_store
from stageline.work.data import inputs_digest
from stageline.work.inputs import data_digest, given_data

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.empty_splits import commit_empty_splits


def section_names(facts: Mapping[str, Any]) -> list[str]:
    """One tensor of each section that a checkpoint of film_flow with these facts has; two where it is none of them."""
    if "vlm_film_trained_stages" not in facts:
        return ["backbone.weight", "side.weight"]
    heads = [f"film.{stage}.weight" for stage in facts["vlm_film_trained_stages"]]
    junction = ["junction.weight"] if facts["junction_head"] else []
    return ["backbone.weight", *junction, *(["cond.weight"] if heads else []), *heads]


@dataclass
class Lab:
    """A root in which runs look as if they had been trained."""

    root: Path
    family: str = "film_flow"

    def config(self, *overrides: str, **sections: Any) -> RunConfig:
        raw = raw_preset(self.family, "tiny") | sections
        return parse_config(raw, ["run=lab", f"root={self.root}", *overrides])

    def prepare(self, config: RunConfig) -> Prepared:
        """Prepared data of a config without sources and rows, committed."""
        return commit_empty_splits(config)

    def commit(
        self,
        config: RunConfig,
        name: str,
        *,
        step: int = 10,
        steps: int = 10,
        final: bool = True,
        parents: Mapping[str, CheckpointRef] | None = None,
        value: float = 0.5,
        tensors: Sequence[str] | None = None,
        **said: str,
    ) -> CheckpointRef:
        """A committed checkpoint of a stage, as training with this config would leave it.

        tensors: names of those that it holds; None is one of each section that the family knows.
        said: fields of its metadata that are to say something else.
        """
        family = family_config(config.family)
        stage = family.stages[name]
        own = stage_config(config, stage)
        prepared = self.prepare(config)
        inputs = prepared.inputs([split.name for split in family.splits(own, stage)])
        links = dict(parents or {})
        records = {
            role: ParentRecord(
                uri=ref.uri,
                digest=ref.digest,
                content=ref.content,
                stage=ref.metadata.stage,
                step=ref.metadata.step,
                weights="ema",
            )
            for role, ref in links.items()
        }
        contents = {role: ref.content for role, ref in links.items()}
        externals = family.externals(own, stage)
        digests = external_digests(read_lock(open_store(self.root)), externals).known
        provenance = Provenance(
            **{"family": family.name, "stage": name, "run": config.run} | said,
            identity="i" * 64,
            stage_fingerprint=stage_fingerprint(own, stage, inputs_digest(inputs), contents, digests),
            settings=stage_settings(own),
            parents=records,
            externals={
                one.name: ExternalRecord(name=one.name, source=one.source, digest=digests[one.name])
                for one in externals
            },
            facts=family.facts(own, stage),
            trained={"all": GroupRecord(tensors=1, parameters=1234)},
            data_digest=data_digest(given_data(prepared.reference), inputs),
            data_inputs=inputs,
        )
        directory = StageDir(open_store(self.root), config.run, name, family.variant(own))
        held = {key: torch.full((2, 2), value + step) for key in tensors or section_names(provenance.facts)}
        snapshot = Snapshot(
            step=step,
            steps=steps,
            final=final,
            tensors=held,
            ema={key: tensor.clone() for key, tensor in held.items()},
            training_state={"step": step},
            best=BestRecord(metric="dice", direction="max", value=value, step=step),
            is_best=True,
            timing={"step_seconds": 0.5},
            config_yaml=f"family: {self.family}\n",
        )
        with StageLease.acquire(directory, "test", keep_renewed=False) as lease:
            return CheckpointWriter(directory, lease, provenance).save(snapshot)

    def train_all(self, config: RunConfig) -> tuple[CheckpointRef, CheckpointRef]:
        """Both stages, finished."""
        backbone = self.commit(config, "backbone")
        return backbone, self.commit(config, "film", parents={"default": backbone})

    def files(self) -> dict[str, bytes]:
        """Every file below the root, to see that nothing was touched."""
        return {str(path.relative_to(self.root)): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "root")

"""Run directories made by hand: what a run leaves behind, byte by byte, without training anything."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

from stageline.checkpoint.metadata import (
    METADATA_NAME,
    BestRecord,
    CheckpointMetadata,
    FileRecord,
    GroupRecord,
    ParentRecord,
    TensorRecord,
    digest_of,
)
from stageline.store import Store

T0 = 1_795_000_000.0
"""When the hand-made runs began, seconds since 1970."""


def png(width: int, height: int, level: int = 128) -> bytes:
    """A grey PNG, written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes([level]) * width for _ in range(height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def mp4(media: bytes) -> bytes:
    """The boxes of an MP4 file: type, an empty table of tracks, media."""
    parts = ((b"ftyp", b"isom" + bytes(4) + b"isommp41"), (b"moov", b""), (b"mdat", media))
    return b"".join(struct.pack(">I4s", 8 + len(body), kind) + body for kind, body in parts)


@dataclass
class HandMade:
    """A run directory under construction. store: the run directory."""

    store: Store
    name: str = "trees"
    digests: dict[str, str] = field(default_factory=dict)

    def json(self, key: str, value: Any) -> None:
        self.store.put(key, json.dumps(value).encode())

    def claim(self, **fields: Any) -> None:
        """run.json"""
        record = {
            "schema": "stageline-run/1",
            "run": self.name,
            "family": "film_flow",
            "identity": {"family": "film_flow", "seed": 0, "model.image_size": 48},
            "fingerprint": "f" * 64,
            "stages": {"backbone": "backbone", "film": "film"},
            "versions": {"stageline": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
            "image": "",
            "command": "stageline run config.yaml run=trees",
            "created": "2026-11-21T12:00:00+00:00",
        }
        self.json("run.json", record | fields)

    def events(self, stage: str, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        if self.store.local_path() is not None:
            self.store.put(f"{stage}/events.jsonl", text.encode())
        else:
            self.store.put(f"{stage}/events-00000001.jsonl", text.encode())

    def checkpoint(self, folder: str, step: int, steps: int, **fields: Any) -> ParentRecord:
        """Commit a checkpoint without tensors' bytes in a stage directory and let both pointers name it."""
        stage, _, variant = folder.partition("/")
        weights = hashlib.sha256(f"{stage} {step}".encode()).hexdigest()
        metadata = CheckpointMetadata(
            **{
                "family": "film_flow",
                "stage": stage,
                "variant": variant,
                "run": self.name,
                "identity": "f" * 64,
                "stage_fingerprint": hashlib.sha256(stage.encode()).hexdigest(),
                "step": step,
                "steps": steps,
                "final": step == steps,
                "files": {"model.safetensors": FileRecord(bytes=1_234_567, sha256=weights)},
                "tensors": {"model": {"w": TensorRecord(dtype="F32", shape=(2, 3))}},
                "trained": {"unet": GroupRecord(tensors=40, parameters=250_123)},
                "frozen": {},
                "facts": {"vlm_film_trained_stages": [2, 3], "decoder_channels": [32, 24, 16, 8]},
                "best": BestRecord(metric="dice", direction="max", value=0.875, step=step),
                "data_digest": "d" * 64,
                "environment": {"device": "cpu", "cpus": 2},
                "timing": {"train": 12.5},
                "created": "2026-11-21T12:01:00+00:00",
                **fields,
            }
        )
        name = f"step-{step:08d}"
        data = metadata.to_bytes()
        self.store.put(f"{folder}/checkpoints/{name}/{METADATA_NAME}", data)
        digest = digest_of(data)
        for pointer in ("best", "last"):
            self.json(f"{folder}/{pointer}.ckpt", {"target": f"checkpoints/{name}", "digest": digest})
        self.digests[folder] = digest
        return ParentRecord(
            uri=f"{self.store.uri}/{folder}/checkpoints/{name}",
            digest=digest,
            content=metadata.content,
            stage=stage,
            step=step,
            weights="ema",
            sections=[
                {
                    "section": "backbone",
                    "outcome": "load",
                    "reason": "same plan of channels",
                    "patterns": ["backbone.*"],
                },
                {"section": "film", "outcome": "fresh", "reason": "the parent has no heads", "patterns": ["film.*"]},
            ],
        )

    def evaluation(self, name: str = "a" * 64, **fields: Any) -> None:
        """An evaluation with two metrics in three modes, and a picture."""
        self.json(
            f"evaluations/{name}/metrics.json",
            {
                "metrics": {"dice": 0.8712345678901234, "dice_off": 0.51, "dice_shuffle": 0.4, "cldice": 0.93},
                "num_samples": {"dice": 48, "cldice": 48},
                "provenance": {
                    "film_mode": "on",
                    "decoder_stages": [2, 3],
                    "stages_origin": "metadata",
                    "nfe": 4,
                    "solver": "euler",
                },
                **fields,
            },
        )
        rows = "id,prompt,mode,dice\r\na/dark,dark branches,on,0.9\r\nb,,on,0.8\r\na/dark,dark branches,off,0.25\r\n"
        self.store.put(f"evaluations/{name}/rows.csv", rows.encode())
        self.store.put(f"evaluations/{name}/sample-000.png", png(60, 20))


def training_events(start: float, steps: int, every: int = 10) -> list[dict[str, Any]]:
    """What one stage says from its first step to its last."""
    lines: list[dict[str, Any]] = [{"time": start, "event": "started", "step": 0, "steps": steps, "device": "cpu"}]
    for step in range(every, steps + 1, every):
        loss = 1.3 / (1 + step / 40) + 0.03 * ((step * 7919) % 13) / 13
        lines.append(
            {
                "time": start + step / 10,
                "event": "step",
                "step": step,
                "loss": loss,
                "parts": {"bce": 0.6 * loss, "dice": 0.4 * loss},
                "gradient_norm": 1.0 + 3 / step,
                "learning_rate": 3e-3 * min(step / 25, 1 - step / (steps + 50)),
            }
        )
        if step % (5 * every) == 0:
            metrics = {"dice": 1 - loss / 2, "cldice": 1 - loss / 3, "loss": loss * 1.1}
            lines.append({"time": start + step / 10, "event": "validation", "step": step, "metrics": metrics})
    return lines


def finished_run(store: Store) -> HandMade:
    """Two stages, trained and evaluated, with one skipped step and one resumption."""
    run = HandMade(store)
    run.claim()
    first = training_events(T0, 80)
    run.events("backbone", [*first, {"time": T0 + 9, "event": "finished", "step": 80}])
    parent = run.checkpoint("backbone", 80, 80)
    lines = training_events(T0 + 12, 250)
    cut = next(i for i, line in enumerate(lines) if line.get("step") == 110)
    lines[cut:cut] = [
        {"time": T0 + 22.9, "event": "skipped", "step": 107, "reason": "loss is nan", "in_a_row": 1},
        {"time": T0 + 22.95, "event": "interrupted", "step": 107, "reason": "SIGTERM"},
        {"time": T0 + 22.96, "event": "resumed", "step": 107},
        {"time": T0 + 22.97, "event": "started", "step": 107, "steps": 250},
    ]
    run.events("film", [*lines, {"time": T0 + 38, "event": "finished", "step": 250}])
    run.checkpoint("film", 250, 250, parents={"default": parent})
    store.put("film/config.yaml", b"family: film_flow\ntrainer:\n  learning_rate: 0.003\n")
    run.evaluation()
    return run


def failed_run(store: Store) -> HandMade:
    """The second stage ran out of memory after its first checkpoint."""
    run = HandMade(store, name="broken")
    run.claim(run="broken")
    run.events("backbone", [*training_events(T0, 80), {"time": T0 + 9, "event": "finished", "step": 80}])
    parent = run.checkpoint("backbone", 80, 80)
    run.events("film", training_events(T0 + 12, 250)[:9])
    run.checkpoint("film", 50, 250, parents={"default": parent})
    run.json(
        "film/failure.json",
        {
            "kind": "out_of_memory",
            "code": "",
            "sentence": "the device ran out of memory in step 61",
            "remedy": "lower trainer.batch_size from 8 to 4",
            "exit_code": 8,
            "rank": 1,
            "time": T0 + 20,
            "log_tail": ["step 60 loss 0.9", "RuntimeError: out of memory"],
        },
    )
    return run

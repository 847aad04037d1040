"""The network computed a second time: object by object, with an explicit softmax, from a state dict alone.

Written from the description of the network, in float64, without any of its modules; slow and short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """What a state dict does not say. streams: name -> modalities. mode, pool, blocks, cut: attention of a scene."""

    modalities: Sequence[str]
    streams: Mapping[str, Sequence[str]]
    heads: int
    mode: str = "object"
    pool: int = 1
    global_blocks: Sequence[int] | None = None
    cut: bool = True
    protected: Sequence[str] = field(default=("shape",))


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def time_vector(state: State, name: str, value: Tensor) -> Tensor:
    angles = torch.stack([value * math.exp(-math.log(10000) * j / 128) for j in range(128)])
    hidden = silu(linear(state, f"{name}.mlp.0", torch.cat([angles.cos(), angles.sin()])))
    return linear(state, f"{name}.mlp.2", hidden)


def unit(state: State, name: str, x: Tensor) -> Tensor:
    """x: (L, H, D). Normalised per head where the state has a gamma of that name."""
    gamma = state.get(f"{name}.gamma")
    if gamma is None:
        return x
    length = x.square().sum(-1, keepdim=True).sqrt()
    return x / length * gamma * math.sqrt(x.shape[-1])


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(Lq, H, D) from (Lk, H, D): one head after the other."""
    heads = []
    for head in range(q.shape[1]):
        scores = torch.exp(q[:, head] @ k[:, head].T / math.sqrt(q.shape[2]))
        heads.append(scores / scores.sum(-1, keepdim=True) @ v[:, head])
    return torch.cat(heads, -1)


def cubes(x: Tensor, pool: int) -> Tensor:
    """Averages over cubes of a grid, (r^3, H, D), cell by cell."""
    side = next(r for r in range(1, 100) if r**3 == len(x))
    grid = x.reshape(side, side, side, *x.shape[1:])
    starts = range(0, side, pool)
    return torch.stack(
        [
            grid[a : a + pool, b : b + pool, c : c + pool].reshape(-1, *x.shape[1:]).mean(0)
            for a in starts
            for b in starts
            for c in starts
        ]
    )


Projected = Mapping[str, tuple[Tensor, Tensor, Tensor]]


def seen_by(settings: Settings, mode: str, scene: Sequence[Projected], i: int, stream: str, part: int) -> Tensor:
    """Keys (part 1) or values (part 2) that a stream of object i sees."""
    everyone = range(len(scene)) if mode != "object" else [i]
    others = [j for j in everyone if j != i]
    if stream in settings.protected:
        own = scene[i][stream][part]
        if mode == "full":
            return torch.cat([scene[j][stream][part] for j in everyone])
        if mode == "pooled":
            return torch.cat([own, *(cubes(scene[j][stream][part], settings.pool) for j in others)])
        return own
    seen = [scene[j][s][part] for j in everyone for s in settings.streams if s not in settings.protected]
    for s in settings.protected:
        for j in everyone:
            x = scene[j][s][part].detach() if settings.cut else scene[j][s][part]
            seen.append(cubes(x, settings.pool) if mode == "pooled" and j != i else x)
    return torch.cat(seen)


def run_block(
    state: State, settings: Settings, number: int, scene: list[dict[str, Tensor]], e: list[Tensor], cond: list[Tensor]
) -> list[dict[str, Tensor]]:
    """One block on the objects of one scene."""
    at = f"blocks.{number}"
    is_global = settings.global_blocks is None or number in settings.global_blocks
    mode = settings.mode if is_global else "object"
    six = [
        (linear(state, f"{at}.adaLN_modulation.1", silu(v)) if f"{at}.adaLN_modulation.1.weight" in state else v).chunk(
            6
        )
        for v in e
    ]
    projected = []
    for x, (shift, scale, *_) in zip(scene, six, strict=True):
        own = {}
        for s in settings.streams:
            h = norm(x[s], 1e-6) * (1 + scale) + shift
            qkv = linear(state, f"{at}.self_attn.to_qkv.{s}", h).reshape(len(h), 3, settings.heads, -1)
            q = unit(state, f"{at}.self_attn.q_rms_norm.{s}", qkv[:, 0])
            own[s] = (q, unit(state, f"{at}.self_attn.k_rms_norm.{s}", qkv[:, 1]), qkv[:, 2])
        projected.append(own)
    out = []
    for i, x in enumerate(scene):
        _, _, gate1, shift2, scale2, gate2 = six[i]
        after = {}
        for s in settings.streams:
            k, v = (seen_by(settings, mode, projected, i, s, part) for part in (1, 2))
            h = x[s] + gate1 * linear(state, f"{at}.self_attn.to_out.{s}", attention(projected[i][s][0], k, v))
            normed = norm(h, 1e-6) * state[f"{at}.norm2.{s}.weight"] + state[f"{at}.norm2.{s}.bias"]
            cross = f"{at}.cross_attn.{s}"
            q = unit(
                state, f"{cross}.q_rms_norm", linear(state, f"{cross}.to_q", normed).reshape(len(h), settings.heads, -1)
            )
            kv = linear(state, f"{cross}.to_kv", cond[i]).reshape(len(cond[i]), 2, settings.heads, -1)
            k = unit(state, f"{cross}.k_rms_norm", kv[:, 0])
            h = h + linear(state, f"{cross}.to_out", attention(q, k, kv[:, 1]))
            moved = norm(h, 1e-6) * (1 + scale2) + shift2
            hidden = gelu(linear(state, f"{at}.mlp.{s}.mlp.0", moved))
            after[s] = h + gate2 * linear(state, f"{at}.mlp.{s}.mlp.2", hidden)
        out.append(after)
    return out


def evaluate(
    state: State,
    settings: Settings,
    latents: Mapping[str, Tensor],
    t: Sequence[float],
    cond: Tensor,
    d: Sequence[float] | None = None,
    scene_sizes: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Modality -> (N, L, ch). t, d: one number per object."""
    count = len(next(iter(latents.values())))
    sizes = scene_sizes or ([1] * count if settings.mode == "object" else [count])
    out: dict[str, list[Tensor]] = {m: [] for m in settings.modalities}
    start = 0
    for size in sizes:
        scene, e, rows = [], [], []
        for place in range(size):
            i = start + place
            tokens = {}
            for m in settings.modalities:
                at = f"latent_mapping.{m}"
                tokens[m] = linear(state, f"{at}.input_layer", latents[m][i]) + state[f"{at}.pos_emb"]
                if "object_emb.weight" in state:
                    tokens[m] = tokens[m] + state["object_emb.weight"][place]
            scene.append({s: torch.cat([tokens[m] for m in names]) for s, names in settings.streams.items()})
            vector = time_vector(state, "t_embedder", torch.tensor(t[i], dtype=torch.float64))
            if d is not None:
                vector = vector + time_vector(state, "d_embedder", torch.tensor(d[i], dtype=torch.float64))
            shared = "adaLN_modulation.1.weight" in state
            e.append(linear(state, "adaLN_modulation.1", silu(vector)) if shared else vector)
            rows.append(cond[i if len(cond) > 1 else 0])
        blocks = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
        for number in range(blocks):
            scene = run_block(state, settings, number, scene, e, rows)
        for x in scene:
            for s, names in settings.streams.items():
                lengths = [len(state[f"latent_mapping.{m}.pos_emb"]) for m in names]
                for m, part in zip(names, torch.split(x[s], lengths), strict=True):
                    out[m].append(linear(state, f"latent_mapping.{m}.out_layer", norm(part, 1e-5)))
        start += size
    return {m: torch.stack(parts) for m, parts in out.items()}

"""VICReg on matched tokens: the loss in both forms in circulation, its projector, and what validation says of it.

X and Y, (n, P), are matched vectors of two views (arXiv:2105.04906):

    inv = mean((X - Y)^2)
    var = mean over X and Y of mean_j relu(gamma - sqrt(var_j + 1e-4)),  gamma = 1
    cov = sum over X and Y of sum_(j != k) C_jk^2 / P,  C the covariance with n - 1
    total = 25 inv + 25 var + 1 cov

Form `paper` is this, with unbiased variance, as in the authors' code. Form `biased_half` divides the variance by n and
halves the covariance term. Totals of the two differ; a checkpoint says which one it saw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.errors import ConfigError, TrainingError

Form = Literal["paper", "biased_half"]
Statistics = Literal["pooled", "per_pair"]
ProjectorNorm = Literal["batch", "layer", "none"]

WEIGHTS = (25.0, 25.0, 1.0)
"""Of invariance, variance and covariance, section 4.1 of the paper."""
GAMMA = 1.0
EPSILON = 1e-4
COLLAPSED = WEIGHTS[1] * (GAMMA - EPSILON**0.5)
"""Total of vectors that are all the same: 24.75."""
MAX_TOKENS = 8192


class VicregTerms(NamedTuple):
    """The loss and its parts, scalars with a graph: total = 25 inv + 25 var + cov. `_asdict()` gives a dict."""

    total: Tensor
    inv: Tensor
    var: Tensor
    cov: Tensor


def loss(
    x: Tensor,
    y: Tensor,
    form: Form = "paper",
    mask: Tensor | None = None,
    *,
    statistics: Statistics | None = None,
    raw: tuple[Tensor, Tensor] | None = None,
    max_tokens: int = MAX_TOKENS,
    rng: torch.Generator | None = None,
) -> VicregTerms:
    """VICReg of matched vectors, in float32 (float64 where x is) with autocast off.

    x, y: (n, P), or (K, n, P) for K directed pairs of tiles.
    form: `paper` or `biased_half`.
    mask: (n,) or (K, n), true for pairs that count. The others are taken out, never filled with zeros.
    statistics: `pooled` over all pairs, or `per_pair`: inside each of the K, then the mean of the K totals. Null is
        what the axes say: per pair with a K, pooled without.
    raw: two sets (m, P) whose variance and covariance are taken in place of those of x and y; pooled only.
    max_tokens: more pooled pairs than that are thinned to a random subset, the same of x and y.
    rng: where that subset is drawn, the same on every rank; null is torch's own generator.

    Raises ConfigError for an unknown form or shapes that do not match, TrainingError with fewer than 2 pairs.
    """
    if statistics is None:
        statistics = "per_pair" if x.ndim == 3 else "pooled"
    _check(x, y, form, mask, statistics)
    if raw is not None and statistics == "per_pair":
        raise ConfigError("vicreg of raw tokens has no pairs of tiles", remedy="set vicreg.statistics: pooled")
    with torch.autocast(x.device.type, enabled=False):
        x, y = _wide(x), _wide(y)
        if statistics == "per_pair":
            kept = [torch.ones_like(rows[:, 0], dtype=torch.bool) for rows in x] if mask is None else list(mask.bool())
            parts = [_terms(a[keep], b[keep], a[keep], b[keep], form) for a, b, keep in zip(x, y, kept, strict=True)]
            return VicregTerms(*(torch.stack(part).mean() for part in zip(*parts, strict=True)))
        keep = slice(None) if mask is None else mask.bool().flatten()
        x, y = _thin((x.flatten(0, -2)[keep], y.flatten(0, -2)[keep]), max_tokens, rng)
        if raw is None:
            return _terms(x, y, x, y, form)
        a, b = (_thin((_wide(part),), max_tokens, rng)[0] for part in raw)
        return _terms(x, y, a, b, form)


def _check(x: Tensor, y: Tensor, form: str, mask: Tensor | None, statistics: str) -> None:
    if form not in get_args(Form) or statistics not in get_args(Statistics):
        raise ConfigError(
            f"vicreg form {form!r} with statistics {statistics!r}",
            remedy=f"form: {', '.join(get_args(Form))}; statistics: {', '.join(get_args(Statistics))}",
        )
    axes = (3,) if statistics == "per_pair" else (2, 3)
    if x.shape != y.shape or x.ndim not in axes or (mask is not None and mask.shape != x.shape[:-1]):
        raise ConfigError(
            f"vicreg: x {tuple(x.shape)}, y {tuple(y.shape)}, mask {None if mask is None else tuple(mask.shape)} with "
            f"statistics {statistics}",
            remedy="x and y are (n, P) or (K, n, P), the mask is their shape without P; per_pair needs the K",
        )


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _thin(parts: tuple[Tensor, ...], most: int, rng: torch.Generator | None) -> tuple[Tensor, ...]:
    """The same random rows of each part where they have too many."""
    if len(parts[0]) <= most:
        return parts
    rows = torch.randperm(len(parts[0]), generator=rng)[:most].to(parts[0].device)
    return tuple(part[rows] for part in parts)


def _terms(x: Tensor, y: Tensor, a: Tensor, b: Tensor, form: Form) -> VicregTerms:
    """x, y: matched vectors, (n, P).  a, b: the vectors whose variance and covariance count, (m, P)."""
    if min(len(x), len(a), len(b)) < 2:
        raise TrainingError(
            f"vicreg has {min(len(x), len(a), len(b))} pairs of tokens, and a variance needs 2 at least",
            remedy="use vicreg.pairs: [global, jitter], statistics: pooled, or a larger batch",
        )
    inv = (x - y).square().mean()
    var_a, cov_a = _spread(a, form)
    var_b, cov_b = _spread(b, form)
    var, cov = (var_a + var_b) / 2, cov_a + cov_b
    cov = cov if form == "paper" else cov / 2
    return VicregTerms(WEIGHTS[0] * inv + WEIGHTS[1] * var + WEIGHTS[2] * cov, inv, var, cov)


def _spread(z: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """The variance and the covariance term of one side."""
    n, width = z.shape
    centred = z - z.mean(0)
    square = centred.square().sum(0)
    std = (square / (n - 1 if form == "paper" else n) + EPSILON).sqrt()
    covariance = centred.T @ centred / (n - 1)
    aside = covariance.square().sum() - covariance.diagonal().square().sum()
    return functional.relu(GAMMA - std).mean(), aside / width


class VicregProjector(nn.Module):
    """Linear, norm, ReLU twice, then Linear without bias: D_v -> P -> P -> P. Trained and kept, but only this stage
    uses it.

    vision_dim: D_v.  width: P.  norm: `batch`, `layer` or `none`.
    """

    def __init__(self, vision_dim: int, width: int = 1024, norm: ProjectorNorm = "batch") -> None:
        super().__init__()
        kinds: dict[str, Callable[[int], nn.Module]] = {
            "batch": nn.BatchNorm1d,
            "layer": nn.LayerNorm,
            "none": lambda _: nn.Identity(),
        }
        if norm not in kinds:
            raise ConfigError(f"vicreg_projector.norm is {norm!r}", remedy=f"choose one of {', '.join(kinds)}")
        self.layers = nn.Sequential(
            nn.Linear(vision_dim, width),
            kinds[norm](width),
            nn.ReLU(),
            nn.Linear(width, width),
            kinds[norm](width),
            nn.ReLU(),
            nn.Linear(width, width, bias=False),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, D_v) -> (n, P)."""
        out: Tensor = self.layers(tokens)
        return out


def pair_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Mean cosine of matched vectors.

    x, y: (n, D), before the projector.
    """
    return functional.cosine_similarity(_wide(x), _wide(y), dim=-1).mean()


def pair_retrieval(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of vectors whose nearest neighbour by cosine, among the valid ones of their pair of tiles, is their match;
    chance is one in the number of valid ones.

    x, y: (K, n, D).  mask: (K, n), true for pairs that count.
    """
    x, y = functional.normalize(_wide(x), dim=-1), functional.normalize(_wide(y), dim=-1)
    near = x @ y.transpose(-1, -2)
    count = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask.bool()
    near = near.masked_fill(~count.unsqueeze(1), float("-inf"))
    right = near.argmax(-1) == torch.arange(x.shape[1], device=x.device)
    return right[count].float().mean()


def feature_std(x: Tensor) -> Tensor:
    """Mean over features of their standard deviation over vectors.

    x: (n, D), n >= 2.
    """
    return _wide(x).std(0).mean()


def effective_rank(x: Tensor, most: int = 2048) -> Tensor:
    """exp of the entropy of normalised singular values of centred vectors, in [1, min(n, D)] (Roy & Vetterli, 2007).

    x: (n, D).  most: vectors that are looked at, evenly spaced over the n.
    """
    wide = _wide(x)
    if len(wide) > most:
        wide = wide[torch.linspace(0, len(wide) - 1, most, device=x.device).round().long()]
    values = torch.linalg.svdvals(wide - wide.mean(0))
    share = values / values.sum().clamp(min=1e-30)
    return torch.exp(torch.special.entr(share).sum())

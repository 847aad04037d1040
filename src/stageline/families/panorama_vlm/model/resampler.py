"""What all resamplers share: stitching, the direction encoding before and after, and the size of their output.

Shapes: B panoramas, V views, S tokens per view of the tower, D_v its width, T image tokens, D_llm their width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.image_tokens import TokenRules, token_table
from stageline.families.panorama_vlm.model.encoding import DirectionEncodings
from stageline.families.panorama_vlm.stitching import TokenLayout


class ImageTokens(NamedTuple):
    """What a resampler gives: tokens (B, T, D_llm), and mask (B, T), false for tokens of invalid views (they are
    zero); None where all count."""

    tokens: Tensor
    mask: Tensor | None


class Directions(NamedTuple):
    """Of stitched tokens: dirs (T, 3), kinds (T,) and logsolid (T,) or None."""

    dirs: Tensor
    kinds: Tensor
    logsolid: Tensor | None


class Tables:
    """The index tables of one layout as tensors, made once per device; no part of a model's state, so that weights
    learned with one layout serve another."""

    def __init__(self, layout: TokenLayout, rules: TokenRules) -> None:
        self.layout, self.rules = layout, rules
        self.table = token_table(layout, rules)
        self._made: dict[tuple[str, torch.device], Tensor] = {}

    def tensor(self, name: str, array: np.ndarray, device: torch.device) -> Tensor:
        """An array as a tensor on a device, kept under a name."""
        found = self._made.get((name, device))
        if found is None:
            found = self._made[name, device] = torch.from_numpy(np.ascontiguousarray(array)).to(device)
        return found

    def stitched(self, x: Tensor) -> Tensor:
        """(B, V * S, d) -> (B, T_stitched, d): gathered, or averaged over the tokens around each canvas cell."""
        made = self.table.stitched
        sources = self.tensor("sources", made.sources, x.device)
        if sources.shape[1] == 1:
            return x[:, sources[:, 0]]
        weights = self.tensor("weights", made.weights, x.device).to(x.dtype)
        out = x[:, sources[:, 0]] * weights[:, :1]
        for k in range(1, sources.shape[1]):
            out = out + x[:, sources[:, k]] * weights[:, k : k + 1]
        return out

    def directions(self, token_dirs: Tensor, logsolid: Tensor | None) -> Directions:
        """Directions of stitched tokens.

        token_dirs: (V, S, 3).  logsolid: (V, S) or None.
        """
        made, device = self.table.stitched, token_dirs.device
        gathered = made.num_tokens - len(made.cell_dirs)
        sources = self.tensor("gathered", made.sources[:gathered, 0], device)
        cells = self.tensor("cell_dirs", made.cell_dirs, device).to(token_dirs.dtype)
        dirs = torch.cat([token_dirs.reshape(-1, 3)[sources], cells])
        kinds = self.tensor("kinds", made.kinds, device)
        if logsolid is not None:
            solid = self.tensor("cell_logsolid", made.cell_logsolid, device).to(logsolid.dtype)
            logsolid = torch.cat([logsolid.reshape(-1)[sources], solid])
        return Directions(dirs, kinds, logsolid)

    def valid(self, token_valid: Tensor) -> tuple[Tensor, Tensor]:
        """Which stitched tokens have a picture, (B, T), and the weight of valid sources in each, (B, T).

        token_valid: (B, V * S).
        """
        made = self.table.stitched
        sources = self.tensor("sources", made.sources, token_valid.device)
        weights = self.tensor("weights", made.weights, token_valid.device)
        share = (token_valid.to(weights.dtype)[:, sources] * weights).sum(-1)
        return share > 0, share


@dataclass(frozen=True)
class Connection:
    """What any resampler stands between, and how many tokens it makes.

    layout: token grids of the views.  rules: of tokens, their type among them.  vision_dim: D_v.  language_dim: D_llm.
    output_rms: root mean square of the language model's embeddings; image tokens start at that size.
    """

    layout: TokenLayout
    rules: TokenRules
    vision_dim: int
    language_dim: int
    output_rms: float = 1.0


class Resampler(nn.Module, ABC):
    """Stitches and encodes tokens, then hands them to `resample` of the type, and sets the size of what comes out."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.tables = Tables(connection.layout, connection.rules)
        self.vision_dim, self.language_dim = connection.vision_dim, connection.language_dim
        self.norm = nn.LayerNorm(self.vision_dim)
        self.scale = nn.Parameter(torch.full((1,), connection.output_rms))

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.tables.table.num_tokens

    @abstractmethod
    def resample(self, x: Tensor, valid: Tensor | None) -> ImageTokens:
        """Image tokens of about unit size.

        x: (B, T_stitched, D_v), zero where invalid.  valid: (B, T_stitched) or None.
        """

    def forward(
        self,
        features: Tensor,
        token_dirs: Tensor,
        view_valid: Tensor | None = None,
        *,
        encodings: DirectionEncodings | None = None,
        token_logsolid: Tensor | None = None,
    ) -> ImageTokens:
        """Image tokens of the tower's tokens.

        features: (B, V, S, D_v).  token_dirs: (V, S, 3) unit directions.
        view_valid: (B, V), false for views without a picture, or (B, V, S) where single tokens have none; None where
        all have one.  encodings: of directions, None for none.
        token_logsolid: (V, S), ln of each token's solid angle; needed where the encoding has solid angles only.

        Raises ConfigError for features or directions that are not of the layout.
        """
        layout = self.tables.layout
        expected = (len(layout.views), layout.tokens_per_view)
        if features.shape[1:] != (*expected, self.vision_dim) or token_dirs.shape != (*expected, 3):
            raise ConfigError(
                f"features {tuple(features.shape)} and token directions {tuple(token_dirs.shape)} do not fit the "
                f"layout: expected (B, {expected[0]}, {expected[1]}, {self.vision_dim}) and {(*expected, 3)}",
                remedy="make the model with the layout of the pictures' plan",
            )
        x = self.norm(features).flatten(1, 2)
        valid = None
        if view_valid is not None:
            if view_valid.ndim == 2:
                view_valid = view_valid.unsqueeze(-1)
            token_valid = view_valid.expand(-1, *expected).flatten(1)
            x = x.masked_fill(~token_valid.unsqueeze(-1), 0.0)
            valid, share = self.tables.valid(token_valid)
            x = self.tables.stitched(x) / share.clamp(min=1e-12).unsqueeze(-1).to(x.dtype)
        else:
            x = self.tables.stitched(x)
        where = self.tables.directions(token_dirs, token_logsolid)
        if encodings is not None:
            x = x + encodings.before(*where).to(x.dtype)
            x = x if valid is None else x.masked_fill(~valid.unsqueeze(-1), 0.0)
        tokens, mask = self.resample(x, valid)
        if encodings is not None and encodings.after is not None:
            tokens = tokens + self._after(encodings, where)
        tokens = tokens * self.scale
        if tokens.shape[1] != self.num_tokens:
            raise AssertionError(f"{tokens.shape[1]} image tokens, expected {self.num_tokens}")
        return ImageTokens(tokens if mask is None else tokens.masked_fill(~mask.unsqueeze(-1), 0.0), mask)

    def _after(self, encodings: DirectionEncodings, where: Directions) -> Tensor:
        assert encodings.after is not None
        if len(self.tables.table.members) == 0:
            raise ConfigError(
                "pe.after needs image tokens with a direction, and queries have none",
                remedy="set pe.after: false, or use mlp, or bimamba with pool grid, none or last_of_chunk",
            )
        members = self.tables.tensor("members", self.tables.table.members, where.dirs.device)
        mean = nn.functional.normalize(where.dirs[members].mean(1), dim=-1)
        out: Tensor = encodings.after(mean, where.kinds[members[:, 0]])
        return out

    def pooled_mask(self, valid: Tensor | None) -> Tensor | None:
        """(B, T) of stitched tokens' (B, T_stitched): a cell counts where any of its members does."""
        if valid is None:
            return None
        whole: Tensor = valid[:, self.tables.tensor("members", self.tables.table.members, valid.device)].any(-1)
        return whole


def start_output(layer: nn.Linear, input_square: float = 1.0) -> nn.Linear:
    """Weights that make outputs of unit size from inputs of the given mean square, and no bias at first.

    layer: the last one of a resampler.  input_square: mean square of its inputs.
    """
    nn.init.normal_(layer.weight, std=(layer.in_features * input_square) ** -0.5)
    nn.init.zeros_(layer.bias)
    return layer

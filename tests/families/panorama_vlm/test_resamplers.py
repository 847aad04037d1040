"""Resamplers: how many tokens they make, in what order, of what size, and what their queries see."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from tiny_language import tiny_tokenizer
from torch import Tensor

from stageline.errors import ConfigError, DataError
from stageline.families.panorama_vlm.data.text import PromptBuilder, place_image_tokens
from stageline.families.panorama_vlm.geometry.tiles import plan
from stageline.families.panorama_vlm.image_tokens import SCOPES, TokenRules, num_tokens
from stageline.families.panorama_vlm.model.encoding import make_encodings
from stageline.families.panorama_vlm.model.query_resamplers import QFormerResampler
from stageline.families.panorama_vlm.model.resampler import Connection, Resampler
from stageline.families.panorama_vlm.model.resamplers import make_resampler
from stageline.families.panorama_vlm.orders import pool_block
from stageline.families.panorama_vlm.stitching import Block, TokenLayout, ViewTokens, kept_columns, stitch

SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 64},
    "qformer": {"width": 32, "depth": 2, "heads": 4, "feed_width": 64},
    "perceiver": {"width": 32, "depth": 2, "heads": 4, "head_dim": 8},
    "bimamba": {"width": 32, "depth": 2, "head_dim": 16, "state": 8, "query_heads": 4},
}
KINDS = [
    {"type": kind, "scope": scope, **({"pool": pool} if kind == "bimamba" else {})}
    for kind, scopes in SCOPES.items()
    for scope in scopes
    for pool in (("grid", "none", "query", "last_of_chunk") if kind == "bimamba" else (None,))
]
VISION, LANGUAGE = 6, 48


def layout_of(overlap: float, grid: int = 16, **more: Any) -> TokenLayout:
    return TokenLayout.of_plan(plan(90, overlap, **more), grid)


def make(layout: TokenLayout, seed: int = 0, output_rms: float = 1.0, **rules: Any) -> Resampler:
    torch.manual_seed(seed)
    made = make_resampler(Connection(layout, TokenRules(**rules), VISION, LANGUAGE, output_rms), **SIZES[rules["type"]])
    return made.eval()


def inputs(layout: TokenLayout, batch: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    views, size = len(layout.views), layout.tokens_per_view
    dirs = torch.nn.functional.normalize(torch.randn(views, size, 3), dim=-1)
    return torch.randn(batch, views, size, VISION) * 3, dirs


def name_of(rules: dict[str, Any]) -> str:
    return "-".join(str(value) for value in rules.values())


def test_counts_of_the_default_resamplers() -> None:
    """Check 10: 5, 7 and 9 views of 256 tokens."""
    layouts = [layout_of(overlap) for overlap in (0, 0.25, 0.5)]
    expected = {
        "mlp": [320, 448, 576],
        "qformer": [160, 224, 288],
        "perceiver": [320, 448, 576],
        "bimamba": [320, 448, 576],
    }
    for kind, counts in expected.items():
        assert [num_tokens(layout, TokenRules(type=kind)) for layout in layouts] == counts  # type: ignore[arg-type]
    for kind in ("qformer", "perceiver"):
        rules = TokenRules(type=kind, scope="panorama")  # type: ignore[arg-type]
        assert [num_tokens(layout, rules) for layout in layouts] == [128] * 3
    rules = TokenRules(type="bimamba", pool="none")
    assert [num_tokens(layout, rules) for layout in layouts] == [1280, 1792, 2304]
    rules = TokenRules(type="mlp", stitching="dedupe", pooling=1)
    assert [num_tokens(layout, rules) for layout in layouts] == [256 + 1024, 256 + 960, 256 + 768]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.mark.parametrize("rules", KINDS, ids=name_of)
@pytest.mark.parametrize("stitching", ["concat", "dedupe", "resample"])
def test_num_tokens_is_the_length_of_the_output(tokenizer: Any, rules: dict[str, Any], stitching: str) -> None:
    """Check 10: every type, scope, stitching and pool, and as many `<|image_pad|>`; another number is refused with
    both. With a view missing, too, whatever its features hold."""
    for overlap in (0, 0.25, 0.5):
        layout = layout_of(overlap, 4)
        model = make(layout, stitching=stitching, **rules, **({"chunk": 3} if rules["type"] == "bimamba" else {}))
        x, dirs = inputs(layout, 2)
        with torch.no_grad():
            tokens, mask = model(x, dirs, encodings=make_encodings(VISION, LANGUAGE))
        assert mask is None
        assert tokens.shape == (2, num_tokens(layout, model.tables.rules), LANGUAGE)
        builder = PromptBuilder(tokenizer, model.num_tokens)
        ids = torch.tensor([builder.prompt("What?").ids] * 2)
        places, empty = ids == builder.special.image, torch.zeros(*ids.shape, LANGUAGE)
        assert int(places[0].sum()) == tokens.shape[1]
        placed = place_image_tokens(empty, ids, tokens, builder.special.image)
        assert torch.equal(placed[places].reshape_as(tokens), tokens)
        with pytest.raises(DataError, match=f"has {tokens.shape[1]} places for {tokens.shape[1] - 1} image tokens"):
            place_image_tokens(empty, ids, tokens[:, 1:], builder.special.image)
        valid = torch.ones(2, len(layout.views), dtype=torch.bool)
        valid[1, 2] = False
        x[1, 2] = float("nan")
        with torch.no_grad():
            partly, mask = model(x, dirs, valid)
        assert mask is not None
        assert torch.allclose(partly[0], tokens[0], atol=1e-5)
        assert partly.isfinite().all()
        assert partly[~mask].eq(0).all()
        lost = int((~mask[1]).sum())
        whole = rules.get("scope") == "panorama" and (rules["type"] != "bimamba" or rules["pool"] == "query")
        if stitching != "resample":  # whose cells are seen by other tiles, too
            assert (lost == 0) == whole


def test_real_sizes() -> None:
    """11.5 M and 28.8 M at the size of SigLIP2-so400m and Qwen3-0.6B, the other two near 50 M and 40 M."""
    layout = layout_of(0.5)
    expected = {"mlp": (11.5e6, 0.1e6), "bimamba": (28.8e6, 0.1e6), "qformer": (50e6, 3e6), "perceiver": (40e6, 1e6)}
    with torch.device("meta"):
        for kind, (number, slack) in expected.items():
            model = make_resampler(Connection(layout, TokenRules(type=kind), 1152, 1024))  # type: ignore[arg-type]
            assert sum(p.numel() for p in model.parameters()) == pytest.approx(number, abs=slack), kind


ATTENTION = ("q", "k", "v", "out")
NAMES = {
    "mlp": {"deep_norm", "fc1", "fc2"},
    "qformer": {
        *("queries", "query_norm", "norm_out", "proj_out", "layers.#.self_norm", "layers.#.cross_norm"),
        *("layers.#.feed.0", "layers.#.feed.2", "layers.#.feed_norm"),
        *(f"layers.#.{side}_attention.{part}" for side in ("self", "cross") for part in ATTENTION),
    },
    "perceiver": {
        *("queries", "proj_in", "norm_out", "proj_out", "layers.#.key_norm", "layers.#.latent_norm"),
        *("layers.#.feed.0", "layers.#.feed.2", "layers.#.feed_norm"),
        *(f"layers.#.attention.{part}" for part in ATTENTION),
    },
    "bimamba": {
        *("proj_in", "norm_out", "proj_out"),
        *(f"mamba.blocks.#.{part}" for part in ("norm", "in_proj", "conv1d", "dt_bias", "A_log", "D", "gated_norm")),
        "mamba.blocks.#.out_proj",
    },
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_in_checkpoints_stay(kind: str) -> None:
    """Finished checkpoints are read by these names."""
    found = make(layout_of(0, 4), type=kind).state_dict()
    assert {re.sub(r"\.\d+\.", ".#.", re.sub(r"\.(weight|bias)$", "", name)) for name in found} == {
        *NAMES[kind],
        "norm",
        "scale",
    }


@pytest.mark.parametrize("rules", KINDS, ids=name_of)
def test_image_tokens_start_at_the_size_of_text_embeddings(rules: dict[str, Any]) -> None:
    layout = layout_of(0, 4)
    x, dirs = inputs(layout, 8)
    model = make(layout, output_rms=0.03, **rules)
    rms = float(model(x, dirs).tokens.detach().square().mean().sqrt())
    assert rms == pytest.approx(0.03, rel=0.2)


@pytest.mark.parametrize("kind", ["qformer", "perceiver"])
def test_queries_are_equivariant_and_see_each_other(kind: str) -> None:
    """Check 9: permuting queries permutes outputs; changing a late query changes an early output."""
    layout = layout_of(0, 4)
    model, (x, dirs) = make(layout, type=kind, scope="panorama", queries=7), inputs(layout)
    assert isinstance(model.queries, torch.nn.Parameter)
    with torch.no_grad():
        before, order = model(x, dirs).tokens, torch.randperm(7)
        model.queries.copy_(model.queries[order])
        assert float((model(x, dirs).tokens - before[:, order]).abs().max()) <= 1e-5
        before = model(x, dirs).tokens
        model.queries[6] *= -1
        assert float((model(x, dirs).tokens - before)[:, 0].abs().max()) > 1e-4


def test_qformer_equals_its_formula() -> None:
    """Post-norm layers, attention over keys in every second one, no mask among queries."""
    layout = TokenLayout.ring([-90, 90], 2, 90, has_global=False)
    model, (x, dirs) = make(layout, type="qformer", queries=3).double(), inputs(layout)
    assert isinstance(model, QFormerResampler)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}

    def norm(v: np.ndarray, name: str) -> np.ndarray:
        centred = v - v.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(v: np.ndarray, name: str) -> np.ndarray:
        return v @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)

    def attend(q: np.ndarray, keys: np.ndarray, name: str) -> np.ndarray:
        parts = [linear(v, f"{name}.{part}").reshape(len(v), 4, 8) for v, part in ((q, "q"), (keys, "k"), (keys, "v"))]
        scores = np.exp(np.einsum("qhd,khd->hqk", parts[0], parts[1]) / np.sqrt(8))
        mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), parts[2])
        return linear(mixed.reshape(len(q), 32), f"{name}.out")

    out = []
    for view in range(2):
        keys = norm(x[0, view].double().numpy(), "norm")
        q = norm(state["queries"], "query_norm")
        for n in range(2):
            q = norm(q + attend(q, q, f"layers.{n}.self_attention"), f"layers.{n}.self_norm")
            if n == 0:
                q = norm(q + attend(q, keys, f"layers.{n}.cross_attention"), f"layers.{n}.cross_norm")
            hidden = torch.nn.functional.gelu(torch.from_numpy(linear(q, f"layers.{n}.feed.0"))).numpy()
            q = norm(q + linear(hidden, f"layers.{n}.feed.2"), f"layers.{n}.feed_norm")
        out.append(linear(norm(q, "norm_out"), "proj_out"))
    expected = torch.from_numpy(np.concatenate(out)) * model.scale.detach()
    assert float((model(x.double(), dirs.double()).tokens[0] - expected).detach().abs().max()) <= 1e-10


@pytest.mark.parametrize("kind", ["qformer", "perceiver", "bimamba"])
def test_scope_says_what_a_token_sees(kind: str) -> None:
    """A change in the last view reaches tokens of the first one in scope panorama only."""
    layout = layout_of(0, 4)
    x, dirs = inputs(layout)
    other = x.clone()
    other[:, -1] *= -1
    for scope, reaches in (("per_view", False), ("panorama", True)):
        model = make(layout, type=kind, scope=scope)
        with torch.no_grad():
            change = (model(other, dirs).tokens - model(x, dirs).tokens).abs().amax(-1)[0]
        assert bool(change[0] > 1e-7) == reaches
        assert change[-1] > 1e-5


def test_weights_of_nine_views_serve_five() -> None:
    """The layout is no part of the state."""
    nine, five = layout_of(0.5, 4), layout_of(0, 4)
    for rules in KINDS:
        a, b = make(nine, **rules), make(five, seed=1, **rules)
        b.load_state_dict(a.state_dict(), strict=True)
    model = make(five, type="mlp")
    with pytest.raises(ConfigError, match=r"expected \(B, 5, 16, 6\)"):
        model(*inputs(nine))


def columns_read(layout: TokenLayout, stitching: str) -> list[tuple[int, int, int]]:
    """(view, row, column) of each image token of an unpooled mlp, read off its members."""
    made = stitch(layout, stitching)  # type: ignore[arg-type]
    model = make(layout, type="mlp", pooling=1, stitching=stitching)
    sources = made.sources[model.tables.table.members[:, 0], 0]
    size = layout.tokens_per_view
    return [(int(s // size), int(s % size) // 4, int(s % size) % 4) for s in sources]


def test_reading_order_of_concat_and_dedupe() -> None:
    layout = TokenLayout.ring([-180, -90, 0, 90], 4, 90)
    assert columns_read(layout, "concat") == [(v, r, c) for v in range(5) for r in range(4) for c in range(4)]
    whole = [(0, r, c) for r in range(4) for c in range(4)]
    assert columns_read(layout, "dedupe") == whole + [
        (v, r, c) for v in range(1, 5) for c in range(4) for r in range(4)
    ]


@pytest.mark.parametrize(("tiles", "columns"), [(8, 6), (6, 10), (5, 12), (4, 16)])
def test_dedupe_keeps_each_azimuth_once(tiles: int, columns: int) -> None:
    """The columns that are kept are symmetric, of the stated number, and lie nearest to their own tile."""
    tile = ViewTokens(kind="tile", rows=16, cols=16, ring=0)
    kept = kept_columns(tile, 360 / tiles)
    assert len(kept) == columns
    assert kept.start + kept.stop == 16
    azimuths = np.degrees(np.arctan((np.arange(16) + 0.5) / 8 - 1))[list(kept)]
    assert np.abs(azimuths).max() <= 180 / tiles


def test_pooling_takes_cells_of_one_view_and_repeats_a_missing_border() -> None:
    block = Block("tile", 0, 0.0, np.arange(27 * 27).reshape(27, 27))
    cells, size = pool_block(block, 2)
    assert size == (14, 14)
    assert cells[0].tolist() == [0, 1, 27, 28]
    assert cells[13].tolist() == [26, 26, 53, 53]
    assert cells[-1].tolist() == [27 * 27 - 1] * 4
    with pytest.raises(ConfigError, match="does not fit a grid of 6 x 6"):
        pool_block(Block("tile", 0, 0.0, np.arange(36).reshape(6, 6)), 4)


def test_canvas_holds_directions_and_weighs_tiles_by_their_distortion() -> None:
    """Features that are the direction itself come out as the direction of the canvas cell, to interpolation."""
    layout = layout_of(0.5)
    made = stitch(layout, "resample", (16, 64))
    assert made.weights.sum(1) == pytest.approx(1.0)
    assert (made.weights >= 0).all()
    tangent = (np.arange(16) + 0.5) / 8 - 1
    features = np.zeros((9, 256, 3))
    for number, view in enumerate(layout.views[1:], start=1):
        yaw = np.radians(view.yaw_deg)
        y, x = (axis.ravel() for axis in np.meshgrid(-tangent, tangent, indexing="ij"))
        ray = np.stack([x * np.cos(yaw) + np.sin(yaw), y, -x * np.sin(yaw) + np.cos(yaw)], 1)
        features[number] = ray / np.linalg.norm(ray, axis=1, keepdims=True)
    seen = (features.reshape(-1, 3)[made.sources] * made.weights[..., None]).sum(1)[256:]
    assert np.abs(seen / np.linalg.norm(seen, axis=1, keepdims=True) - made.cell_dirs).max() <= 0.03
    # The whole span is the ring's: at its height 2 atan(tan 45 cos 22.5) = 85.5 degrees.
    top = np.degrees(np.arcsin(made.cell_dirs[:, 1].max()))
    assert top == pytest.approx(np.degrees(np.arctan(np.cos(np.pi / 8))) * 15 / 16, abs=1e-6)
    with pytest.raises(ConfigError, match="one ring of tiles at pitch 0"):
        stitch(layout_of(0, caps=True), "resample")


def test_padding_of_a_letterboxed_view_is_left_out() -> None:
    layout = layout_of(0, global_mode="letterbox")
    assert num_tokens(layout, TokenRules(type="mlp")) == 32 + 4 * 64
    model, (x, dirs) = make(layout, type="bimamba"), inputs(layout)
    with torch.no_grad():
        before = model(x, dirs).tokens
        x[:, 0, :64] = 100.0
        x[:, 0, 192:] = -100.0
        assert torch.equal(model(x, dirs).tokens, before)


def test_tokens_without_a_picture_are_left_out_one_by_one() -> None:
    """A partial panorama: a cell is the mean of those of its tokens that show something."""
    layout = TokenLayout.ring([-180, 0], 2, 90, has_global=False)
    model, (x, dirs) = make(layout, type="bimamba"), inputs(layout)
    valid = torch.ones(1, 2, 4, dtype=torch.bool)
    valid[0, 0, 2:], valid[0, 1] = False, False
    with torch.no_grad():
        before, mask = model(x, dirs, valid)
        x[~valid] = float("nan")
        after = model(x, dirs, valid).tokens
    assert mask is not None
    assert mask.tolist() == [[True, False]]
    assert torch.equal(before, after)


def test_all_rules_that_do_not_fit_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TokenRules(type="mlp", scope="panorama", pooling=3, pool="grid", queries=4, circular_warmup_cols=2)
    for word in ("scope is 'panorama'", "pooling is 3", "pool is 'grid'", "queries is 4", "circular_warmup_cols is 2"):
        assert word in str(caught.value)
    with pytest.raises(ConfigError, match="type is 'mamba'"):
        TokenRules(type="mamba")  # type: ignore[arg-type]


def test_counting_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from stageline.families.panorama_vlm.stitching import TokenLayout\n"
        "from stageline.families.panorama_vlm.image_tokens import TokenRules, num_tokens\n"
        "assert num_tokens(TokenLayout.ring([0.0], 4, 90.0), TokenRules(type='mlp')) == 8\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

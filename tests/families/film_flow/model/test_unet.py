"""The U-Nets: shapes, sizes that are refused, attention against its formula, memory saving, independence of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stageline.errors import ConfigError
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.config.film_plan import FilmPlan, decoder_channels
from stageline.families.film_flow.model.blocks import ChannelNorm, FullAttention, LinearAttention, TimeEmbedding
from stageline.families.film_flow.model.dual import MidLayer
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.families.film_flow.model.unet import BackboneSettings

Build = Callable[..., FilmFlowModel]
KINDS = [("concat", "plain"), ("dual", "plain"), ("dual", "msd_v0")]


def variant(build: Build, kind: str, backbone: str, stages: tuple[int, ...] = (2, 3), **kwargs: Any) -> FilmFlowModel:
    settings = {"backbone_variant": backbone, **kwargs.pop("settings", {})}
    return build(stages, image_conditioning=kind, settings=settings, **kwargs)


@pytest.mark.parametrize(("kind", "backbone"), KINDS)
def test_decoder_stages_have_the_channels_and_sizes_of_the_table(
    build: Build, inputs: Any, kind: str, backbone: str
) -> None:
    model = variant(build, kind, backbone)
    seen: list[tuple[int, ...]] = []
    for stage in model.backbone.dec:
        stage.site.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    out = model(*inputs.positional(), inputs.condition)
    assert out.shape == (2, 1, 16, 16)
    assert seen == [(2, 32, 2, 2), (2, 24, 4, 4), (2, 16, 8, 8), (2, 8, 16, 16)]


@pytest.mark.parametrize(("kind", "backbone"), KINDS)
@pytest.mark.parametrize("size", [(31, 32), (32, 36), (4, 4), (33, 33)])
def test_sizes_that_do_not_divide_are_refused(build: Build, kind: str, backbone: str, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"{size[0]}x{size[1]}.*divisible by 8") as error:
        variant(build, kind, backbone)(torch.zeros(1, 1, *size), torch.zeros(1), torch.zeros(1, 1, *size))
    assert error.value.code == "E_SIZE"


@pytest.mark.parametrize("kind", ["concat", "dual"])
def test_other_sizes_that_divide_are_fine(build: Build, kind: str) -> None:
    model = variant(build, kind, "plain")
    assert model(torch.zeros(1, 1, 24, 40), torch.zeros(1), torch.zeros(1, 1, 24, 40)).shape == (1, 1, 24, 40)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_other_depths(build: Build, depth: int) -> None:
    model = build((0,), channel_mult=(1, 2, 2, 3, 4)[:depth])
    size = 2 ** (depth + 1)
    x = torch.randn(1, 1, size, size)
    bundle = ConditionBundle(torch.randn(1, 12), torch.ones(1, dtype=torch.bool))
    assert model(x, torch.rand(1), x, bundle).shape == x.shape
    assert len(model.backbone.dec) == depth


@pytest.mark.parametrize(
    ("width", "dim", "millions"), [(8, 256, 0.55), (8, 32, 0.255), (16, 256, 1.29), (32, 256, 4.11)]
)
def test_sizes_of_the_plain_concat_network(width: int, dim: int, millions: float) -> None:
    plan = FilmPlan(
        decoder_channels=decoder_channels(width, (1, 2, 3, 4)), stages=(0, 1, 2, 3), cond_dim=dim, head_hidden=dim
    )
    with torch.device("meta"):
        model = FilmFlowModel(plan, BackboneSettings(model_channels=width), cond_features=12)
    count = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("cond."))
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_attention_follows_the_resolutions_named() -> None:
    settings = BackboneSettings(image_size=64, attn_resolutions=(16, 8), level_attention="linear")
    assert [settings.attention_at(level) for level in range(4)] == ["linear", "linear", "full", "full"]
    assert BackboneSettings(image_size=64).attention_at(0) == "none"
    assert BackboneSettings(image_size=64, backbone_variant="msd_v0").attention_at(0) == "linear"


def heads_of(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], 4, 32, -1)


def test_full_attention_is_softmax_attention() -> None:
    torch.manual_seed(0)
    layer = FullAttention(8, "msd_v0")
    x = torch.randn(2, 8, 5, 6)
    q, k, v = (heads_of(part) for part in layer.qkv(layer.norm(x)).chunk(3, dim=1))
    weights = torch.einsum("bhdi,bhdj->bhij", q * 32**-0.5, k).softmax(dim=-1)
    mixed = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(2, 128, 5, 6)
    assert torch.allclose(layer(x), x + layer.out(mixed), atol=1e-5)


def test_linear_attention_normalises_features_of_q_and_positions_of_k() -> None:
    torch.manual_seed(0)
    layer = LinearAttention(8, "msd_v0")
    x = torch.randn(2, 8, 5, 6)
    q, k, v = (heads_of(part) for part in layer.qkv(layer.norm(x)).chunk(3, dim=1))
    context = torch.einsum("bhdn,bhen->bhde", k.softmax(dim=-1), v)
    mixed = torch.einsum("bhde,bhdn->bhen", context, q.softmax(dim=-2) * 32**-0.5).reshape(2, 128, 5, 6)
    assert torch.allclose(layer(x), x + layer.out_norm(layer.out(mixed)), atol=1e-5)
    assert isinstance(layer.out_norm, ChannelNorm)


@pytest.mark.parametrize("kind", [FullAttention, LinearAttention])
def test_plain_attention_starts_as_the_identity(kind: Any) -> None:
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(kind(8, "plain")(x), x)
    assert not torch.equal(kind(8, "msd_v0")(x), x)


def test_channel_norm_is_over_channels_with_a_wider_epsilon_in_half() -> None:
    norm = ChannelNorm(8, bias=True)
    x = 0.01 * torch.randn(2, 8, 3, 3)
    for dtype, eps in ((torch.float32, 1e-5), (torch.bfloat16, 1e-3)):
        given = x.to(dtype)
        wide = given.float()
        expected = (wide - wide.mean(1, keepdim=True)) / (wide.var(1, correction=0, keepdim=True) + eps).sqrt()
        assert norm(given).dtype == dtype
        assert torch.allclose(norm(given).float(), expected, atol=1e-4 if dtype == torch.float32 else 2e-2)


def test_time_embedding_conventions() -> None:
    plain, msd = TimeEmbedding(8, 1000.0, "plain"), TimeEmbedding(8, 1000.0, "msd_v0")
    assert isinstance(plain.act, torch.nn.SiLU)
    assert isinstance(msd.act, torch.nn.GELU)
    t = torch.tensor([0.25])
    phase = 250.0 * 10_000.0 ** (-torch.arange(4) / 3)
    wave = torch.cat((phase.sin(), phase.cos()))[None]
    assert torch.allclose(msd(t), msd.fc2(torch.nn.functional.gelu(msd.fc1(wave))), atol=1e-5)


def test_mid_layer_matches_on_the_image_and_takes_values_from_the_mask() -> None:
    torch.manual_seed(0)
    layer = MidLayer(8, "msd_v0")
    x, c = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4)
    first = layer.cross1
    q, k = (heads_of(part) for part in first.qk(first.norm_match(c)).chunk(2, dim=1))
    v = heads_of(first.v(first.norm_value(x)))
    weights = torch.einsum("bhdi,bhdj->bhij", q * 32**-0.5, k).softmax(dim=-1)
    h = x + first.out(torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(1, 128, 4, 4))
    a, b = layer.ff1(h), layer.ff2(h)
    assert torch.allclose(layer(x, c), a + layer.cross2(b, a), atol=1e-5)
    assert torch.equal(MidLayer(8, "plain").cross1(c, x), torch.zeros_like(x))


@pytest.mark.parametrize(("kind", "backbone"), KINDS)
def test_a_sample_does_not_know_its_batch_mates(build: Build, inputs: Any, kind: str, backbone: str) -> None:
    model = variant(build, kind, backbone, settings={"attn_resolutions": (8,), "level_attention": "linear"})
    rng = torch.Generator().manual_seed(5)
    x, image = (torch.randn(5, 1, 16, 16, generator=rng) for _ in range(2))
    t, vec = torch.rand(5, generator=rng), torch.randn(5, 12, generator=rng)
    present = torch.tensor([True, False, True, True, False])
    with torch.no_grad():
        whole = model(x, t, image, ConditionBundle(vec, present))
        order = torch.tensor([3, 0, 4, 2, 1])
        mixed = model(x[order], t[order], image[order], ConditionBundle(vec[order], present[order]))
        assert (torch.sigmoid(mixed) - torch.sigmoid(whole[order])).abs().max() <= 2e-6
        for i in range(5):
            one = slice(i, i + 1)
            alone = model(x[one], t[one], image[one], ConditionBundle(vec[one], present[one]))
            assert (torch.sigmoid(alone) - torch.sigmoid(whole[one])).abs().max() <= 2e-6


@pytest.mark.parametrize(("kind", "backbone"), KINDS)
def test_every_tensor_of_the_backbone_is_used(build: Build, inputs: Any, kind: str, backbone: str) -> None:
    model = variant(build, kind, backbone, settings={"level_attention": "linear"}).train()
    model(*inputs.positional(), inputs.condition).square().mean().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert idle == []


@pytest.mark.slow  # torch's checkpointing loads its compiler when it is first used
@pytest.mark.parametrize("kind", ["concat", "dual"])
def test_recomputing_gives_the_same_gradients(build: Build, inputs: Any, kind: str) -> None:
    grads = []
    for recompute in (False, True):
        model = variant(build, kind, "plain", settings={"use_gradient_checkpointing": recompute}).train()
        model(*inputs.positional(), inputs.condition).square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], atol=1e-6), name


def test_dropout_acts_in_training_only(build: Build, inputs: Any) -> None:
    model = variant(build, "concat", "plain", settings={"dropout": 0.5})
    call = (*inputs.positional(), inputs.condition)
    with torch.no_grad():
        assert torch.equal(model(*call), model(*call))
        assert torch.equal(model(*call), variant(build, "concat", "plain")(*call))
        model.train()
        assert not torch.equal(model(*call), model(*call))


def test_time_and_image_matter(build: Build, inputs: Any) -> None:
    model = build(())
    out = model(*inputs.positional())
    assert not torch.equal(model(inputs.x_t, inputs.t.flip(0), inputs.image), out)
    assert not torch.equal(model(inputs.x_t, inputs.t, -inputs.image), out)


def test_plan_and_backbone_must_fit() -> None:
    plan = FilmPlan(decoder_channels=(64, 48, 32, 16), stages=(0,))
    with pytest.raises(ConfigError, match=r"\[64, 48, 32, 16\].*\[32, 24, 16, 8\]"):
        FilmFlowModel(plan, BackboneSettings(model_channels=8), cond_features=4)
    good = FilmPlan(decoder_channels=(32, 24, 16, 8), stages=(0,))
    with pytest.raises(ConfigError, match="size of the condition features"):
        FilmFlowModel(good, BackboneSettings(model_channels=8))
    with pytest.raises(ConfigError, match="msd_v0"):
        FilmFlowModel(good, BackboneSettings(model_channels=8, backbone_variant="msd_v0"), cond_features=4)
    with pytest.raises(ConfigError, match="E_CHANNELS"):
        BackboneSettings(model_channels=12)

"""FiLM in the network: where it acts, that it starts as nothing, and where gradients go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stageline.errors import ConfigError
from stageline.families.film_flow.conditions.bundle import PROTOCOL_KEY
from stageline.families.film_flow.model.film import FilmHead, FilmLimit
from stageline.families.film_flow.model.network import FilmFlowModel
from tests.families.film_flow.model.subsets import SUBSETS

Build = Callable[..., FilmFlowModel]
POINTS = ["post_block1", "post_block2"]


@pytest.fixture(scope="module")
def made(build: Build) -> Iterator[Build]:
    """made(stages, kick=…): `build` of what several tests look at, made once; at the end none may have changed it."""
    once: dict[Any, tuple[FilmFlowModel, dict[str, Tensor]]] = {}

    def make(stages: tuple[int, ...] = (), *, kick: bool = True) -> FilmFlowModel:
        if (stages, kick) not in once:
            model = build(stages, kick=kick)
            once[stages, kick] = model, {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return once[stages, kick][0]

    yield make
    for model, before in once.values():
        assert not model.training
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def sites(model: FilmFlowModel, inputs: Any) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]], list[Tensor]]:
    """Output, (before, after) per FiLM site, and the outputs of all leaf modules until the first modulated site."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    upstream: list[Tensor] = []
    state = {"open": True}
    handles = []
    for s, stage in enumerate(model.backbone.dec):

        def note(_: Any, args: Any, out: Tensor, s: int = s) -> None:
            seen[s] = (args[0], out)
            state["open"] = state["open"] and args[1] is None

        handles.append(stage.site.register_forward_hook(note))
    for module in model.backbone.modules():
        if not list(module.children()) and type(module).__name__ != "FilmSite":

            def keep(_: Any, args: Any, out: Tensor) -> None:
                if state["open"]:
                    upstream.append(out)

            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        out = model(*inputs.positional(), inputs.condition)
    for handle in handles:
        handle.remove()
    return out, seen, upstream


@pytest.fixture(scope="module")
def plain_sites(build: Build, inputs: Any) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]], list[Tensor]]:
    """`sites` of the model without FiLM."""
    return sites(build(()), inputs)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("stages", SUBSETS, ids=str)
def test_film_acts_at_its_decoder_stages_and_nowhere_before(
    build: Build, made: Build, inputs: Any, plain_sites: Any, stages: tuple[int, ...], point: str
) -> None:
    """Acceptance check 1."""
    plain_out, _, plain_upstream = plain_sites
    model = made(stages) if point == "post_block1" else build(stages, plan={"apply_point": point})
    assert model.plan.apply_point == point
    out, seen, upstream = sites(model, inputs)
    changed = tuple(s for s, (before, after) in seen.items() if not torch.equal(before, after))
    assert changed == stages
    assert 0 < len(upstream) < len(plain_upstream)
    for ours, plain in zip(upstream, plain_upstream, strict=False):
        assert torch.equal(ours, plain)
    assert not torch.equal(out, plain_out)


def test_without_film_the_condition_changes_nothing(made: Build, inputs: Any) -> None:
    """Acceptance check 1."""
    model = made(())
    out, seen, _ = sites(model, inputs)
    assert all(torch.equal(before, after) for before, after in seen.values())
    assert torch.equal(out, model(*inputs.positional()))


def test_apply_point_changes_the_result_with_the_same_weights(build: Build, inputs: Any) -> None:
    first, second = (build((1, 2), plan={"apply_point": point}) for point in POINTS)
    assert {k: v.shape for k, v in first.state_dict().items()} == {k: v.shape for k, v in second.state_dict().items()}
    assert not torch.equal(
        first(*inputs.positional(), inputs.condition), second(*inputs.positional(), inputs.condition)
    )


@pytest.fixture(scope="module")
def plain_outputs(build: Build, inputs: Any) -> dict[str, Tensor]:
    """Output of the model without FiLM, per kind of backbone."""
    with torch.no_grad():
        return {kind: build((), image_conditioning=kind)(*inputs.positional()) for kind in ("concat", "dual")}


@pytest.mark.parametrize(
    ("stages", "kind"), [(s, "concat") for s in SUBSETS] + [((0,), "dual"), ((0, 1, 2, 3), "dual")], ids=str
)
def test_zero_heads_are_bitwise_no_film(
    build: Build, made: Build, inputs: Any, plain_outputs: dict[str, Tensor], stages: tuple[int, ...], kind: str
) -> None:
    """Acceptance check 2."""
    plain = plain_outputs[kind]
    with torch.no_grad():
        model = made(stages, kick=False) if kind == "concat" else build(stages, kick=False, image_conditioning=kind)
        assert torch.equal(model(*inputs.positional(), inputs.condition), plain)
        assert torch.equal(model(*inputs.positional()), plain)


def gradients(model: FilmFlowModel, inputs: Any) -> tuple[dict[str, float], float]:
    vec = inputs.condition.vec.clone().requires_grad_()
    model.zero_grad()
    model(*inputs.positional(), replace(inputs.condition, vec=vec)).square().mean().backward()
    sizes = {n: 0.0 if p.grad is None else float(p.grad.abs().sum()) for n, p in model.film.named_parameters()}
    return sizes, 0.0 if vec.grad is None else float(vec.grad.abs().sum())


@pytest.mark.parametrize("stages", SUBSETS, ids=str)
def test_gradients_reach_exactly_the_selected_heads(made: Build, inputs: Any, stages: tuple[int, ...]) -> None:
    """Acceptance check 3."""
    sizes, condition = gradients(made(stages), inputs)
    assert {int(name.split(".")[0]) for name in sizes} == set(stages)
    assert all(size > 0 for size in sizes.values())
    assert condition > 0


def test_without_film_no_gradient_reaches_the_condition(made: Build, inputs: Any) -> None:
    """Acceptance check 3."""
    sizes, condition = gradients(made(()), inputs)
    assert sizes == {}
    assert condition == 0


@pytest.mark.parametrize("stages", SUBSETS, ids=str)
def test_at_the_start_only_the_output_layer_of_a_head_learns(made: Build, inputs: Any, stages: tuple[int, ...]) -> None:
    """Acceptance check 3."""
    sizes, condition = gradients(made(stages, kick=False), inputs)
    assert condition == 0
    for name, size in sizes.items():
        assert (size > 0) == (".fc2." in name), name


def test_absent_condition_is_bitwise_no_film_whatever_it_holds(made: Build, inputs: Any) -> None:
    model = made((1, 3))
    vec = inputs.condition.vec.clone()
    vec[1] = float("nan")
    condition = replace(inputs.condition, vec=vec, present=torch.tensor([True, False]))
    with torch.no_grad():
        out = model(*inputs.positional(), condition)
        off = model(*inputs.positional())
        on = model(*inputs.positional(), inputs.condition)
    assert torch.equal(out[1], off[1])
    assert torch.equal(out[0], on[0])
    assert not torch.equal(on[1], off[1])


def test_absent_condition_gives_finite_gradients(build: Build, inputs: Any) -> None:
    model = build((1, 3))
    vec = torch.full_like(inputs.condition.vec, float("nan"))
    condition = replace(inputs.condition, vec=vec, present=torch.tensor([False, False]))
    model(*inputs.positional(), condition).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_strength_zero_is_bitwise_no_film(build: Build, inputs: Any) -> None:
    model = build((0, 2))
    model.schedule.set(film=0.0)
    with torch.no_grad():
        assert torch.equal(model(*inputs.positional(), inputs.condition), model(*inputs.positional()))
    for bad in (-0.1, 1.5):
        with pytest.raises(ConfigError):
            model.schedule.set(film=bad)


@pytest.mark.parametrize("active", [(), (0,), (2,), (0, 3)], ids=str)
def test_an_ablation_is_the_model_without_the_other_heads(made: Build, inputs: Any, active: tuple[int, ...]) -> None:
    full, part = made((0, 2, 3)), made(active)
    with torch.no_grad():
        expected = part(*inputs.positional(), inputs.condition)
        assert torch.equal(full(*inputs.positional(), inputs.condition, film_active=active), expected)


def test_an_ablation_cannot_name_a_head_that_was_never_trained(made: Build, inputs: Any) -> None:
    with pytest.raises(ConfigError, match=r"film_active \[1, 2\] names \[1\].*\[2, 3\]") as error:
        made((2, 3))(*inputs.positional(), inputs.condition, film_active=[1, 2])
    assert error.value.code == "E_RANGE"


def test_head_gives_scale_change_first_then_shift() -> None:
    head = FilmHead(3, 5, 4)
    head.fc2.bias.data = torch.arange(8.0)
    gamma, beta = head(torch.zeros(1, 3))
    assert torch.equal(gamma[0], torch.arange(4.0))
    assert torch.equal(beta[0], torch.arange(4.0, 8.0))


@pytest.mark.parametrize(("variant", "act"), [("silu_v1", torch.nn.functional.silu), ("relu_v0", torch.relu)])
def test_head_variants(variant: Any, act: Callable[[Tensor], Tensor]) -> None:
    head = FilmHead(6, 5, 4, variant, layernorm=False)
    torch.nn.init.normal_(head.fc2.weight)
    cond = torch.randn(2, 6)
    expected = act(cond @ head.fc1.weight.T + head.fc1.bias) @ head.fc2.weight.T
    assert torch.allclose(torch.cat(head(cond), dim=1), expected, atol=1e-6)
    assert [name for name, _ in head.named_parameters()] == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]


def test_head_count_matches_the_published_size() -> None:
    heads = [FilmHead(256, 256, c) for c in (128, 96, 64, 32)]
    assert sum(p.numel() for head in heads for p in head.parameters()) == 429_696


def test_limit_bounds_the_modulation_and_is_gentle_for_small_values(build: Build, inputs: Any) -> None:
    free, bound = (build((3,), film_limit=limit) for limit in (None, FilmLimit(0.05, 0.01)))
    for model, most in ((free, None), (bound, 0.05)):
        found = model(*inputs.positional(), inputs.condition, full=True, diagnostics=True).diagnostics[3]
        assert most is None or float(found.gamma_abs) <= most
    wide = build((3,), film_limit=FilmLimit(1e4, 1e4))
    with torch.no_grad():
        a, b = (m(*inputs.positional(), inputs.condition) for m in (free, wide))
    assert torch.allclose(a, b, atol=1e-4)
    assert not torch.allclose(a, bound(*inputs.positional(), inputs.condition), atol=1e-4)


def test_diagnostics_are_returned_not_stored(made: Build, inputs: Any) -> None:
    model = made((1, 2))
    before = set(vars(model))
    out = model(*inputs.positional(), inputs.condition, full=True, diagnostics=True)
    assert list(out.diagnostics) == [1, 2]
    for found in out.diagnostics.values():
        assert all(float(value) > 0 for value in found)
        assert float(found.change_p50) <= float(found.change_p95)
    assert set(vars(model)) == before
    assert torch.equal(out.prediction, model(*inputs.positional(), inputs.condition))


def test_same_condition_for_all_shows_as_no_spread(made: Build, inputs: Any) -> None:
    model = made((2,))
    one = inputs.condition.vec[:1].expand(2, -1)
    found = model(*inputs.positional(), replace(inputs.condition, vec=one), full=True, diagnostics=True).diagnostics[2]
    assert float(found.gamma_spread) < 1e-6 < float(found.gamma_abs)


def test_heads_compute_in_float32_under_autocast(build: Build, inputs: Any) -> None:
    model = build((3,))
    seen: list[torch.dtype] = []
    model.film["3"].register_forward_hook(lambda _, args, out: seen.extend((args[0].dtype, out[0].dtype)))
    after: list[torch.dtype] = []
    model.backbone.dec[3].site.register_forward_hook(lambda _, args, out: after.extend((args[0].dtype, out.dtype)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(*inputs.positional(), inputs.condition)
    assert seen == [torch.float32, torch.float32]
    assert after[0] == after[1]


def test_a_required_condition_may_be_absent_but_not_missing(build: Build, inputs: Any) -> None:
    model = build((2, 3), require_condition=True)
    with pytest.raises(ConfigError) as error:
        model(*inputs.positional())
    assert error.value.code == "E_NO_CONDITION"
    assert "[2, 3]" in error.value.message
    nobody = replace(inputs.condition, present=torch.tensor([False, False]))
    assert torch.isfinite(model(*inputs.positional(), nobody)).all()


def test_a_condition_for_another_plan_is_refused(made: Build, inputs: Any) -> None:
    model, other = made((2, 3)), made((0, 1))
    good = replace(inputs.condition, plan_fingerprint=model.plan_fingerprint)
    assert torch.isfinite(model(*inputs.positional(), good)).all()
    with pytest.raises(ConfigError, match=f"{other.plan_fingerprint}.*{model.plan_fingerprint}") as error:
        model(*inputs.positional(), replace(good, plan_fingerprint=other.plan_fingerprint))
    assert error.value.code == "E_PLAN_MISMATCH"


def test_dict_protocol_is_accepted_only_for_exactly_these_decoder_stages(made: Build, inputs: Any) -> None:
    model = made((2, 3))
    base = {"vec": inputs.condition.vec, "present": inputs.condition.present}
    expected = model(*inputs.positional(), inputs.condition)
    assert torch.equal(model(*inputs.positional(), {**base, PROTOCOL_KEY: [3, 2]}), expected)
    with pytest.raises(
        ConfigError, match=r"condition was prepared for decoder stages \[0, 1\] but the model applies \[2, 3\]"
    ):
        model(*inputs.positional(), {**base, PROTOCOL_KEY: [0, 1]})
    for bad in (base, {**base, PROTOCOL_KEY: [2]}, {PROTOCOL_KEY: [2, 3]}, {**base, PROTOCOL_KEY: [2, 3], "x": 1}):
        with pytest.raises(ConfigError):
            model(*inputs.positional(), bad)


def test_condition_features_of_another_size_are_refused_with_both_numbers(made: Build, inputs: Any) -> None:
    with pytest.raises(ConfigError, match=r"size 5.*12"):
        made((1,))(*inputs.positional(), replace(inputs.condition, vec=torch.randn(2, 5)))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("image", {"image_proj.proj", "image_proj.norm"}),
        ("image+text", {"image_proj.proj", "image_proj.norm"}),
        ("text", {"text_proj.proj", "text_proj.norm"}),
        ("probe", {"text_proj.fc1", "text_proj.fc2"}),
    ],
)
def test_projection_is_named_by_its_source(build: Build, inputs: Any, source: str, names: set[str]) -> None:
    model = build((2,), plan={"cond_source": source})
    assert {k.removeprefix("cond.").rsplit(".", 1)[0] for k in model.state_dict() if k.startswith("cond.")} == names
    assert torch.isfinite(model(*inputs.positional(), inputs.condition)).all()

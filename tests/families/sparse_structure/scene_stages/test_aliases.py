"""`_target_` YAML through the table of known classes."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest

from stageline.errors import ConfigError
from stageline.families.sparse_structure.aliases import ALIASES, build, build_file

MAKE_DICT = "sam3d_objects.config.utils.make_dict"


def test_make_dict_and_partial() -> None:
    node = {"_target_": MAKE_DICT, "6drotation_normalized": 0.1, "inner": {"_target_": MAKE_DICT, "a": [1, {"b": 2}]}}
    assert build(node) == {"6drotation_normalized": 0.1, "inner": {"a": [1, {"b": 2}]}}
    later = build({"_target_": MAKE_DICT, "_partial_": True, "a": 1})
    assert isinstance(later, functools.partial)
    assert later(b=2) == {"a": 1, "b": 2}
    assert build({"plain": [1, None, "text"], "made": later}) == {"plain": [1, None, "text"], "made": later}


def test_unknown_targets_are_refused_by_name_and_nothing_is_imported() -> None:
    """Check 14: all of them at once, before anything is built."""
    assert "wave" not in sys.modules
    node = {
        "a": {"_target_": "wave.open", "f": "x"},
        "b": [{"_target_": MAKE_DICT, "c": {"_target_": "sam3d_objects.config.utils.make_dic"}}],
        "d": {"_target_": MAKE_DICT, "_recursive_": False},
        "e": "${a.b}",
        "f": {"_partial_": True},
        "g": {"_target_": 3},
        "h": {"_target_": MAKE_DICT, "_args_": "text"},
    }
    with pytest.raises(ConfigError) as caught:
        build(node)
    text = str(caught.value)
    for part in (
        "a: unknown target 'wave.open'",
        f"b[0].c: unknown target 'sam3d_objects.config.utils.make_dic'; did you mean {MAKE_DICT!r}?",
        "d: '_recursive_' is not supported",
        "e: '${a.b}' refers to other keys",
        "f: `_partial_` without `_target_`",
        "g: unknown target 3",
        "h: `_args_` is 'text', expected a list",
    ):
        assert part in text
    assert "wave" not in sys.modules


def test_a_file_is_read_at_its_generator(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "module:\n  condition_embedder:\n    _target_: somewhere.Else\n"
        f"  generator:\n    backbone:\n      _target_: {MAKE_DICT}\n      1: null\n".replace("1:", "'1':")
    )
    assert build_file(file) == {"1": None}
    with pytest.raises(ConfigError, match="no 'other' at module"):
        build_file(file, "module.other")


LATENT = "sam3d_objects.model.backbone.tdfy_dit.models.mm_latent"


@pytest.mark.parametrize("change", [{"tokens": 1}, {"in_channels": "three"}, {"pos_embedder": None}])
def test_arguments_that_a_class_refuses_are_found_in_the_file(change: dict[str, Any]) -> None:
    learned = {"_target_": f"{LATENT}.LearntPositionEmbedder", "model_channels": 4, "token_len": 1}
    latent = {"_target_": f"{LATENT}.Latent", "in_channels": 3, "model_channels": 4, "pos_embedder": learned}
    with pytest.raises(TypeError) as caught:
        build({"all": [{"first": latent}, {"second": latent | change}]})
    assert caught.value.__notes__ == [f"while building all[1].second: {LATENT}.Latent"]


@pytest.mark.parametrize("kind", ["wide", "deep", "round"])
def test_files_that_explode_are_refused(tmp_path: Path, kind: str) -> None:
    """Anchors that repeat each other are a few lines of text and billions of values."""
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    texts = {"wide": "\n".join(lines), "deep": "a: " + "[" * 60 + "]" * 60, "round": "a: &a {b: *a}"}
    file = tmp_path / "a.yaml"
    file.write_text(f"x:\n  {texts[kind]}".replace("\n", "\n  "))
    with pytest.raises(ConfigError):
        build_file(file, "x")


def test_every_alias_names_something_of_ours() -> None:
    """Check 5."""
    from importlib import import_module

    for place in ALIASES.values():
        module, _, name = place.partition(":")
        made: Any = getattr(import_module(module), name)
        assert callable(made)

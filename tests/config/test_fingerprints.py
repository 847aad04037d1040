"""Fingerprints of configs that checkpoints were written with: a new key at its default must not change them."""

from __future__ import annotations

import hashlib

import pytest

from stageline.config import canonical_json, fingerprint, identity, once_counted
from stageline.families import family_config, parse_config, raw_preset
from stageline.stage import stage_config, stage_fingerprint, stage_settings

RECORDED = {
    ("octa500", "backbone"): (
        "c2dd824fdfa12c8376afb8b9df295aeb1d4c418cd09dd363044b6840e69731bb",
        "b974131dbb74c09973951017440c9227b93996a0bf9b1ced316d0d374268863a",
    ),
    ("octa500", "film"): (
        "0e8c68d51c50d06b49694ffc450c04f82f83377da39bfc82f83a85df23500051",
        "e8d2ae473589923d6e45f78eb9f455f1cfd4e777d2c0c210d7d09c479565363d",
    ),
    ("tiny", "backbone"): (
        "a478e2f1ad56cd878f5ceed73bdf8e92cd3dd2134e5ac1e5f401db966165417a",
        "95b2fffcb6661df380673a9cece3b96165072fd7b189aa6b0a72fc9ee23f1d96",
    ),
    ("tiny", "film"): (
        "397f75458c0550e29d5e8cda3ec1c7dd1ee3815e1f9097a8707b40263afab21f",
        "b09c87fa32ebc646b7a5363d8f277609ef91871415e8971276280bf6bdbc5e93",
    ),
    ("xca", "backbone"): (
        "6fde6b23aebaae8943f6e7ed2b290f337152733828ba0197deaa32d7668ed685",
        "1aa862540d2fc882ee8c8cf0faee282488d2fe6e32e9fe1de22941ae7aadcea7",
    ),
    ("xca", "film"): (
        "7d976314829a330992d20fd9f730e99821578fdaadd62c21e190f6a08479a4a7",
        "f32ef01af9d9f1e3a257b7e21c5167d99ba71a1b52bc277d427b47a3e3299288",
    ),
}
"""(preset, stage) -> SHA-256 of its settings as canonical JSON, stage fingerprint with the data "data" and one parent
"parent", as recorded with the metadata schema stageline/2."""
IDENTITIES = {
    "octa500": "73b6284f27aef7e92d0e98deb5cd46066b793dec3b7d881aeae6dd8115d062a9",
    "tiny": "1f950884c77048505a97aa0b7138c8368f693f75054ef57577373c806c1d8c38",
    "xca": "cabe904a303806f9425b6019a7fb5bd60797e2210472bf27ea240d5cd2c2390e",
}


@pytest.mark.parametrize(("preset", "stage"), RECORDED, ids="-".join)
def test_a_stage_of_a_preset_keeps_its_fingerprint(preset: str, stage: str) -> None:
    declared = family_config("film_flow").stages[stage]
    own = stage_config(parse_config(raw_preset("film_flow", preset)), declared)
    settings = hashlib.sha256(canonical_json(stage_settings(own) | once_counted(own)).encode()).hexdigest()
    found = stage_fingerprint(own, declared, "data", {"default": "parent"})
    assert (settings, found) == RECORDED[preset, stage]


def test_a_key_that_no_longer_counts_changes_no_fingerprint() -> None:
    declared = family_config("film_flow").stages["film"]
    for size in (1, 8, 64):
        raw = parse_config(raw_preset("film_flow", "tiny"), [f"trainer.validation_batch_size={size}"])
        assert (
            stage_fingerprint(stage_config(raw, declared), declared, "data", {"default": "parent"})
            == (RECORDED["tiny", "film"][1])
        )


@pytest.mark.parametrize("preset", IDENTITIES)
def test_a_preset_keeps_its_identity(preset: str) -> None:
    assert fingerprint(identity(parse_config(raw_preset("film_flow", preset)))) == IDENTITIES[preset]


@pytest.mark.parametrize("key", ["data.train_bs", "trainer.batch_size"])
def test_the_command_line_replaces_a_published_spelling_too(key: str) -> None:
    raw = raw_preset("film_flow", "tiny")
    raw["stage_overrides"]["film"][key] = 2
    stage = family_config("film_flow").stages["film"]
    assert stage_config(parse_config(raw), stage).trainer.batch_size == 2
    assert stage_config(parse_config(raw, ["trainer.batch_size=4"]), stage).trainer.batch_size == 4

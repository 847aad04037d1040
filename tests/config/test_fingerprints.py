"""Fingerprints of configs that checkpoints were written with: a new key at its default must not change them."""

from __future__ import annotations

import hashlib

import pytest

from stageline.config import canonical_json, fingerprint, identity
from stageline.families import family_config, parse_config, raw_preset
from stageline.stage import stage_config, stage_fingerprint, stage_settings

RECORDED = {
    ("octa500", "backbone"): (
        "39a9cbd61def8bd384677028a4d6c5762485a3e9e2683a4e23814cfeca31f4ea",
        "91c320172d122ee05b564ceee517c2017004125c18409a0f3e262d1b790f0e89",
    ),
    ("octa500", "film"): (
        "3d0b829372074216f273ef8c6e043217e02b632520f3b5be4b6c7265d123f3ca",
        "41481704f90270d1e54c44a907cf6f9c06220004888000981e2249fcfe6414f7",
    ),
    ("tiny", "backbone"): (
        "dec6b35642ce3ae9780a122e2966b78a5ed9134a06dd0ed1ba9228d5e960f393",
        "85284e3663d1f7821e588c5768f9bcac4385e84f5d0dc87edf098220d8a0af42",
    ),
    ("tiny", "film"): (
        "df2941e7c175c17b1b8e7e36b8974279371a966c55222fe40ed3ce77feff6286",
        "72ae0ee355e65e3bb0e0b88b034c930d7a6938a712f87193a2a52eff1e52b1a2",
    ),
    ("xca", "backbone"): (
        "e6aa76e078c177252b755748646570fd91467b668187d0fd54bde99c9eea4d5a",
        "7844d71f8baa2c82fb587ca79b517e3367af5a749ca6ff5bcd12202dd8e8e6b8",
    ),
    ("xca", "film"): (
        "c14e164a7853907646b9c51716666fef192f64da2ebedad879309ba05de41ca0",
        "d9e5f1d1a86425aa5d1da3fe767362e94b0be3398b507b302a18e10b5850645a",
    ),
}
"""(preset, stage) -> SHA-256 of its settings as canonical JSON, stage fingerprint with the data "data" and one parent
"parent", as version 0.1 made them."""
IDENTITIES = {
    "octa500": "d4a71c5a55290e2cef38447cd8e21a3228a02eae28b4fe078d0d1e75373cdf9b",
    "tiny": "7fb4355cf6c93fe6dee28449e0fb6b83e329e00baaa04fea08270e0b8dcbc6a2",
    "xca": "d4e0884b21c15123de5fbe77ffe1372e9255000f56a3978c2b3ecbda29bd4b93",
}


@pytest.mark.parametrize(("preset", "stage"), RECORDED, ids="-".join)
def test_a_stage_of_a_preset_keeps_its_fingerprint(preset: str, stage: str) -> None:
    declared = family_config("film_flow").stages[stage]
    own = stage_config(parse_config(raw_preset("film_flow", preset)), declared)
    settings = hashlib.sha256(canonical_json(stage_settings(own)).encode()).hexdigest()
    found = stage_fingerprint(own, declared, "data", {"default": "parent"})
    assert (settings, found) == RECORDED[preset, stage]


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

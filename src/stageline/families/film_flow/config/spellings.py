"""The published spellings of film_flow's keys: which are moved, which are refused and why; no torch."""

from __future__ import annotations

from typing import Any

from stageline.config import KeyFault, KeySpellings, contradiction, get_key, note_once, put_key

MOVED = {
    "model.learning_rate": "trainer.learning_rate",
    "model.weight_decay": "trainer.weight_decay",
    "model.use_ema": "trainer.use_ema",
    "model.ema_decay": "trainer.ema_decay",
    "data.train_bs": "trainer.batch_size",
    "trainer.devices": "trainer.processes",
    "trainer.log_every_n_steps": "trainer.log_every_steps",
    "trainer.check_val_every_n_epoch": "trainer.validate_every_epochs",
}
"""Two names of one setting: the left is read and stored as the right."""
RENAMED_VALUES = {"trainer.accelerator": {"gpu": "cuda"}}
"""Published words for a value of ours."""
PUBLISHED_DATA = ("xca", "octa500_3m", "octa500_6m", "rossa")
"""Data sets that published configs name; each lies in folders of its own and is read as `folder`."""
SAME = (("model.image_size", "data.image_size"),)
"""Two keys that hold one number; giving one sets both."""

_UNUSED = "nothing reads it; take it out"
_LOCALITY = "the condition of a sample may not depend on its batch mates or on the training step; take it out"
REFUSED = {
    "model.vlm_film_config.gamma_scale": "it was never applied; to bound the heads set model.film_limit",
    "model.vlm_film_config.beta_scale": "it was never applied; to bound the heads set model.film_limit",
    "model.gamma_scale": "it was never applied; to bound the heads set model.film_limit",
    "model.beta_scale": "it was never applied; to bound the heads set model.film_limit",
    "model.channel_mult_emb": _UNUSED,
    "model.num_blocks": _UNUSED,
    "model.label_dim": _UNUSED,
    "model.augment_dim": _UNUSED,
    "model.num_classes": "masks are binary; take it out",
    "model.dim": "say model.model_channels",
    "model.data_name": "say data.name",
    "model.experiment_name": "say run",
    "model.debug_dfm": _UNUSED,
    "model.log_image_enabled": "say evaluate.num_panels",
    "model.log_image_names": "say evaluate.num_panels",
    "model.vlm_film_config.batch_strategy": _LOCALITY,
    "model.vlm_film_config.reuse_policy": _LOCALITY,
    "model.vlm_film_config.logits_center": _LOCALITY,
    "model.vlm_film_config.pred_warmup_epochs": _LOCALITY,
    "model.vlm_film_config.film_debug_enabled": "diagnostics are in the run's events; take it out",
    "data.use_sauna_transform": "say model.target_kind: soft",
    "trainer.enable_progress_bar": _UNUSED,
}
"""Known, refused, with the reason."""
REFUSED_PREFIXES = {
    "update_interval_steps": _LOCALITY,
    "film_debug_": "diagnostics are in the run's events; take it out",
}
"""The same for every key of these sections that starts so."""
REFUSED_ANYWHERE = dict.fromkeys(("batch_strategy", "reuse_policy", "logits_center", "pred_warmup_epochs"), _LOCALITY)


def _read(raw: dict[str, Any], faults: list[KeyFault]) -> None:
    """Readings that are more than another name."""
    if get_key(raw, "trainer.use_ema") is False and get_key(raw, "evaluate.weights") is None:
        put_key(raw, "evaluate.weights", "raw")  # there are no others
    _name_architecture(raw)
    _name_data(raw)
    _count_crops(raw, faults)


def _name_architecture(raw: dict[str, Any]) -> None:
    if get_key(raw, "model.arch_name") == "medsegdiff_flow":
        put_key(raw, "model.arch_name", "filmflow_dual")
        note_once("model.arch_name 'medsegdiff_flow' is read as 'filmflow_dual'")
    conditioning = get_key(raw, "model.image_conditioning")
    if get_key(raw, "model.arch_name") is None and conditioning in ("concat", "dual"):
        put_key(raw, "model.arch_name", f"filmflow_{conditioning}")


def _name_data(raw: dict[str, Any]) -> None:
    name = get_key(raw, "data.name")
    if name not in PUBLISHED_DATA:
        return
    put_key(raw, "data.name", "folder")
    note_once(f"data.name {name!r} is read as 'folder': pictures from data.train_dir, val_dir, test_dir")
    vlm = get_key(raw, "model.vlm_film_config")
    prompts = vlm.get("prompt_templates") if isinstance(vlm, dict) else None
    if isinstance(prompts, dict) and name in prompts:
        prompts.setdefault("folder", prompts.pop(name))


def _count_crops(raw: dict[str, Any], faults: list[KeyFault]) -> None:
    plan = get_key(raw, "model.patch_plan")
    if not isinstance(plan, list) or not all(isinstance(p, list) and len(p) == 2 for p in plan):
        return
    numbers = [number for _, number in plan]
    if not plan or not all(type(number) is int and number > 0 for number in numbers):
        return
    given = get_key(raw, "data.num_samples_per_image")
    if given is not None and given != sum(numbers):
        faults.append(contradiction("model.patch_plan", plan, "data.num_samples_per_image", given))
    else:
        put_key(raw, "data.num_samples_per_image", sum(numbers))


SPELLINGS = KeySpellings(
    moved=MOVED,
    same=SAME,
    values=RENAMED_VALUES,
    in_other_words=frozenset({"model.image_conditioning", "model.patch_plan"}),
    refused=REFUSED,
    refused_prefixes=REFUSED_PREFIXES,
    refused_anywhere=REFUSED_ANYWHERE,
    read=_read,
)

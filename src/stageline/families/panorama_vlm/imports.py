"""Import of safetensors files: adapters in PEFT's layout, and parts of the model under their own names.

Names of ours (`vision.*`, `projector.*`, `pe.*`, `resampler.*`, adapters) are taken as they are; PEFT's
`base_model.model.<layer>.lora_A.weight` becomes `language.<layer>.lora_A.default.weight`. Everything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from stageline.encoders.frozen import read_weights
from stageline.errors import CheckpointError, Faults
from stageline.families.panorama_vlm.model.language import ADAPTER, PREFIX

PEFT = re.compile(r"base_model\.model\.(?P<layer>.+)\.(?P<part>lora_[AB])\.weight")
OURS = re.compile(r"(vision|projector|pe|resampler)\..+|language\..+\.lora_[AB]\.default\.weight")


def import_files(
    paths: Sequence[Path], config_raw: Mapping[str, Any], stage: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Files -> (raw config, tensors under our names, report).

    paths: safetensors files.  config_raw: the user's raw config.  stage: which stage they are of; needed, since the
    files do not say it.
    Raises CheckpointError with every name that is no tensor of ours, or that two files have.
    """
    faults = Faults(CheckpointError, "files to import", "give safetensors files of adapters, resampler, pe or vision")
    if not stage:
        faults.add("the files do not say which stage they are of; name it with --stage")
    tensors: dict[str, Tensor] = {}
    renamed = 0
    for path in paths:
        for name, tensor in read_weights(path).items():
            peft = PEFT.fullmatch(name)
            own = f"{PREFIX}{peft['layer']}.{peft['part']}.{ADAPTER}.weight" if peft else name
            renamed += peft is not None
            if not OURS.fullmatch(own):
                faults.add(f"{path.name}: {name} is no tensor of this family")
            elif own in tensors:
                faults.add(f"{path.name}: {name} stands in another file too")
            tensors[own] = tensor
    faults.raise_if_any()
    return dict(config_raw), tensors, {"files": [path.name for path in paths], "renamed": renamed}

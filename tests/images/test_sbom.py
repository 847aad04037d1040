"""The bills of materials: every entry of the lock files, the same bytes each time, and no line passed over."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .recipes import IMAGES, ROOT, load_script

sbom = load_script("sbom")


def entries(image: str) -> set[tuple[str, str]]:
    """(name, version) of what an image installs."""
    texts = [(ROOT / f"requirements/{name}.txt").read_text() for name in ("build", image)]
    return {found for text in texts for found in re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", text)}


def test_every_package_of_the_lock_files_is_there_and_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        command = [sys.executable, ROOT / "images/sbom.py", "--folder", tmp_path / folder]
        subprocess.run(command, check=True, capture_output=True)
    for image in IMAGES:
        one, two = ((tmp_path / folder / f"{image}.cdx.json").read_bytes() for folder in ("a", "b"))
        assert one == two
        bill = json.loads(one)
        assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
        assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bill["serialNumber"])
        own, *packages = bill["components"]
        assert own["purl"] == f"pkg:pypi/stageline@{bill['metadata']['component']['version']}"
        assert {(entry["name"], entry["version"]) for entry in packages} == entries(image)
        assert all(entry["properties"][-1]["name"] == "stageline:accepted-sha256" for entry in packages)
        refs = [entry["bom-ref"] for entry in bill["components"]]
        assert len(set(refs)) == len(refs)
        (depends,) = bill["dependencies"]
        assert depends == {"ref": bill["metadata"]["component"]["bom-ref"], "dependsOn": refs}


def test_another_lock_file_is_another_bill_and_markers_are_kept() -> None:
    line = "A_b==1.0+cpu ; sys_platform == 'linux' \\\n    --hash=sha256:{}\n"
    one, two = (sbom.make_bill("trainer", "1", {"lock": line.format(digit * 64)}) for digit in "01")
    assert one["serialNumber"] != two["serialNumber"]
    entry = one["components"][1]
    assert entry["purl"] == "pkg:pypi/a-b@1.0%2Bcpu"
    assert entry["scope"] == "optional"
    assert entry["properties"][0] == {"name": "stageline:marker", "value": "sys_platform == 'linux'"}


@pytest.mark.parametrize("line", ["torch>=2", "torch==2", "-e .", "torch @ file:///torch.whl"])
def test_a_line_that_pins_nothing_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"lock: expected name==version with hashes, found .* `make lock`"):
        sbom.read_lock(line, "lock")

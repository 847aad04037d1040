"""Writes what is in the images as CycloneDX 1.5, from the lock files they are installed from: `make sbom`.

The same lock files give the same bytes: no time, no random number. What the base image brings is its own publisher's to
say, or a scanner's. Needs Python >= 3.11 and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ("launcher", "trainer")
SHARED_LOCK = "build"
"""Beside its own lock file each image installs this one: what the package is built with."""

ENTRY = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;]+)(?:\s*;\s*(?P<marker>.+))?")
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def read_lock(text: str, where: str) -> list[dict[str, Any]]:
    """The components of a lock file, one per entry. ValueError for a line that is no pinned, hashed requirement.

    text: in pip's format, as `make lock` writes it.  where: its name, for messages.
    """
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        plain = line.split(" #")[0].strip()
        if not plain or plain.startswith("#"):
            continue
        hashes = sorted(HASH.findall(plain))
        entry = ENTRY.fullmatch(HASH.sub("", plain).strip())
        if entry is None or not hashes:
            raise ValueError(f"{where}: expected name==version with hashes, found {plain[:80]!r}; run `make lock`")
        found.append(component(entry["name"], entry["version"], entry["marker"] or "", hashes))
    return found


def component(name: str, version: str, marker: str, hashes: list[str]) -> dict[str, Any]:
    """One package. marker: where it is installed, "" for everywhere.  hashes: SHA-256 of accepted files."""
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{quote(version, safe='.')}"
    properties = [{"name": "stageline:accepted-sha256", "value": value} for value in hashes]
    if marker:
        properties.insert(0, {"name": "stageline:marker", "value": marker.strip()})
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "scope": "optional" if marker else "required",
        "purl": purl,
        "properties": properties,
    }


def make_bill(image: str, version: str, locks: dict[str, str]) -> dict[str, Any]:
    """The bill of one image. version: of stageline.  locks: name -> text of the lock files that it installs."""
    packages = {entry["bom-ref"]: entry for name, text in sorted(locks.items()) for entry in read_lock(text, name)}
    own = component("stageline", version, "", []) | {"licenses": [{"license": {"id": "Apache-2.0"}}]}
    root = f"stageline/{image}:{version}"
    contents = json.dumps([root, packages], sort_keys=True)
    refs = sorted(packages)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(contents.encode()).hexdigest())}",
        "version": 1,
        "metadata": {
            "component": {"type": "container", "bom-ref": root, "name": f"stageline/{image}", "version": version}
        },
        "components": [own, *(packages[ref] for ref in refs)],
        "dependencies": [{"ref": root, "dependsOn": [own["bom-ref"], *refs]}],
    }


def write_bills(folder: Path) -> list[Path]:
    """Write `<image>.cdx.json` of each image into a folder; returns the files."""
    version = str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for image in IMAGES:
        names = [f"requirements/{name}.txt" for name in (SHARED_LOCK, image)]
        bill = make_bill(image, version, {name: (ROOT / name).read_text() for name in names})
        written.append(folder / f"{image}.cdx.json")
        written[-1].write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="images/sbom.py", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "dist/sbom", help="where they go (default: dist/sbom)")
    try:
        for path in write_bills(parser.parse_args().folder):
            print(f"sbom: {path}")
    except ValueError as fault:
        sys.exit(f"error: {fault}")

"""How long the whole way of panorama_vlm's tiny profile takes: nine views, five views, and which is better.

Run: `python benchmarks/bench_panorama_tiny.py`. Three stages of BiMamba with overlap 0.5 and their evaluation, the last
two stages again without overlap from the same vision checkpoint, and the comparison, as the commands of a user.
Expected: at most 120 s on two cores that nobody else needs.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGELINE = Path(sys.executable).parent / "stageline"
AIM_SECONDS = 120.0
FLAGS = ("--family", "panorama_vlm", "--preset", "tiny", "model.resampler_type=bimamba")
WAY: dict[str, tuple[str, ...]] = {
    "three stages, 9 views": ("run", *FLAGS, "run=half"),
    "two stages, 5 views": (
        *("run", *FLAGS, "run=none", "image_processing.overlap_ratio=0"),
        "parents.resampler.default=runs/half/vision/anyres-e2p_bimamba/best.ckpt",
    ),
    "comparison": ("compare", "runs/half", "runs/none"),
}


def main() -> None:
    """Run every command and print what it took."""
    print("\nthe whole way of the tiny profile, BiMamba, whole processes")
    total, used = 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, words in WAY.items():
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = [str(STAGELINE), *words]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            total, used = total + wall, used + cpu
            print(f"  {name:<22} {wall:7.1f} s  {cpu:7.1f} CPU s", flush=True)
    verdict = "within" if total <= AIM_SECONDS else "beyond"
    print(f"  {'together':<22} {total:7.1f} s  {used:7.1f} CPU s, {verdict} the aim of {AIM_SECONDS:g} s")


if __name__ == "__main__":
    main()

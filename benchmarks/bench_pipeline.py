"""What the pipeline costs: a run that reuses everything beside a kfp pipeline that does nothing; and `tiny` itself.

Run: `python benchmarks/bench_pipeline.py`. Trains the tiny preset once (some minutes on two cores), then times whole
processes. Both pipelines run through `kfp.local` with a process per step.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import print_table, side_by_side

from stageline.checkpoint.layout import StageDir
from stageline.families import family_config

STAGELINE = Path(sys.executable).parent / "stageline"
NUM_STEPS = 5
"""prepare_data, two stages, evaluate, report."""
AIM_SECONDS = 3.0
RUN = "bench"
NOTHING = """
import sys
from kfp import dsl, local

@dsl.component(install_kfp_package=False)
def nothing(text: str) -> str:
    return text

@dsl.pipeline(name="nothing")
def pipeline(text: str = "a"):
    for _ in range({num_steps}):
        text = nothing(text=text).output

if __name__ == "__main__":
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
    pipeline()
"""


def run(*command: str | Path, folder: str) -> None:
    """Run a command quietly; its words are shown where it fails."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {result.returncode}\n{result.stdout}\n{result.stderr}")


def measure_tiny(folder: str, command: list[str | Path]) -> None:
    """Train the tiny preset and print what it took."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run(*command, folder=folder)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print("\ntiny preset through the pipeline, from nothing to the report")
    print(f"  {'whole run':<20} {wall:8.1f} s  {cpu:8.1f} CPU s")
    for name in family_config("film_flow").stages.names:
        ref = StageDir(folder, RUN, name).newest()
        if ref is not None:
            metadata, seconds = ref.metadata, ref.metadata.timing["seconds"]
            each = seconds / max(1, metadata.step) * 1000
            pace = f"{metadata.step:5d} steps of {each:.0f} ms, {seconds / wall:.0%} of the run"
            print(f"  stage {name:<14} {seconds:8.1f} s  {pace}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for `stageline run`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--family", "film_flow", "--preset", "tiny", f"root={folder}", f"run={RUN}", *arguments.overrides]
        again: list[str | Path] = [STAGELINE, "run", *flags]
        measure_tiny(folder, again)
        script = Path(folder, "nothing.py")
        script.write_text(NOTHING.format(num_steps=NUM_STEPS))
        contestants = {
            "python -c 'import kfp'": [sys.executable, "-W", "ignore", "-c", "import kfp"],
            f"kfp.local, {NUM_STEPS} steps that do nothing": [sys.executable, script, Path(folder, "kfp")],
            f"stageline run, {NUM_STEPS} steps reused": again,
            "stageline plan": [STAGELINE, "plan", *flags],
        }
        seconds = side_by_side(
            {name: lambda c=command: run(*c, folder=folder) for name, command in contestants.items()}, arguments.rounds
        )
        bare, nothing, reused, _ = seconds.values()
        verdict = "within" if reused <= AIM_SECONDS else "beyond"
        print_table(
            f"an unchanged pipeline again, whole processes, median of {arguments.rounds}",
            seconds,
            reference=f"kfp.local, {NUM_STEPS} steps that do nothing",
            note=f"over import kfp, per step: kfp.local {(nothing - bare) / NUM_STEPS:.2f} s, "
            f"stageline {(reused - bare) / NUM_STEPS:.2f} s; reused within {reused:.1f} s, {verdict} the aim of "
            f"{AIM_SECONDS} s",
        )


if __name__ == "__main__":
    main()

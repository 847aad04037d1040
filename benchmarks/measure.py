"""Side-by-side timing: rounds interleaved in one process, so that a busy machine slows all contestants alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def side_by_side(
    contestants: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each contestant after one round that does not count.

    clock: `time.process_time` counts this process's own seconds, for contestants on one thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, call in contestants.items():
            start = clock()
            call()
            if number > 0:
                seconds[name].append(clock() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def print_table(title: str, seconds: Mapping[str, float], *, reference: str, note: str = "") -> None:
    """Print one line per contestant: seconds and the ratio to the reference (below 1 is faster)."""
    width = max(len(name) for name in seconds)
    print(f"\n{title}")
    for name, value in seconds.items():
        ratio = "reference" if name == reference else f"{value / seconds[reference]:8.2f} x"
        print(f"  {name:<{width}}  {value:9.3f} s  {ratio:>10}")
    if note:
        print(f"  {note}", flush=True)

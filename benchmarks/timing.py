"""Timing of functions in alternation, so that drift of the machine's speed affects all equally."""

import statistics
import time
from collections.abc import Callable, Mapping

# Threads of a backend wait for more work by spinning, those of ONNX Runtime for about 0.1 s, which
# would take a core from the next backend. Threads are busy if the process uses more than this CPU
# time while it sleeps for this long.
_NAP_SECONDS, _BUSY_SECONDS = 0.02, 0.002
# The first runs after a pause can take twice as long as later ones, so a function runs for this
# long before it is timed.
_WARM_UP_SECONDS = 0.1


def medians(
    runs: Mapping[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median milliseconds of each function.

    Returns:
        The medians of a run after a warm-up, and of the first run after a pause.
    """
    warm: dict[str, list[float]] = {name: [] for name in runs}
    first: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            settle()
            start = time.perf_counter()
            first[name].append(_milliseconds(run))
            while time.perf_counter() - start < _WARM_UP_SECONDS:
                run()
            warm[name].append(_milliseconds(run))
    return _medians(warm), _medians(first)


def settle() -> None:
    """Wait until no thread of this process is busy."""
    busy = True
    while busy:
        used = time.process_time()
        time.sleep(_NAP_SECONDS)
        busy = time.process_time() - used > _BUSY_SECONDS


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def _medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}

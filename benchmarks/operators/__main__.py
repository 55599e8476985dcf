"""Time of each runtime by operator: ``python -m benchmarks.operators --json FILE``.

The profiler of each runtime times the operators on the same input with the same number of threads.
The figure of an operator is the sum over its calls of each call's median. Torch's profiler keeps no
single calls, so its figures are means. ExecuTorch's figures come from its event tracer.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.options import CheckpointOption, JsonOption, RoundsOption, ThreadsOption
from esrt import bundled
from esrt.benchmark_report import BenchmarkReport
from esrt.cli import VersionOption, run


def main(
    json_file: JsonOption,
    checkpoint: CheckpointOption = bundled.CHECKPOINT,
    threads: ThreadsOption = 2,
    rounds: RoundsOption = 21,
    quick: Annotated[
        bool, typer.Option("--quick", help="Without the size of whisper-small.")
    ] = False,
    version: VersionOption = False,
) -> None:
    """Profile a model at 3, 10 and 30 s, and the size of whisper-small at 30 s."""
    # Imported here: torch takes seconds, which --help need not.
    from benchmarks.encode.measures import (
        SMALL,
        TOOLS,
        cases,
    )
    from benchmarks.operators.profiles import (
        exported,
        measure,
        rows,
        table,
    )
    from esrt.checkpoint import open_checkpoint, random_checkpoint

    folder = Path("build/benchmarks/operators")
    all_rows: list[dict[str, Any]] = []
    opened = open_checkpoint(checkpoint)
    artifacts = exported(opened, folder)
    for case, seconds in cases(opened.config).items():
        all_rows += rows(case, measure(opened, seconds, artifacts, threads, rounds))
    if not quick:
        small = random_checkpoint(SMALL)
        artifacts = exported(small, folder)
        measured = measure(small, SMALL.max_seconds, artifacts, threads, max(3, rounds // 7))
        all_rows += rows("small_30s", measured)
    settings = {"threads": threads, "rounds": rounds, "fingerprint": opened.fingerprint}
    BenchmarkReport(settings=settings, rows=all_rows, bars=[], tools=TOOLS).write(json_file)
    for case in dict.fromkeys(row["case"] for row in all_rows):
        Console().print(table(all_rows, case))


if __name__ == "__main__":
    run(main)

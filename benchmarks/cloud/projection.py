"""What it is worth that packets are projected together."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from threadpoolctl import threadpool_limits

from benchmarks.cloud.cases import Case
from cloud_vllm.service.preprocessing import PacketPreprocessor
from cloud_vllm.settings import Settings
from esrt.checkpoint import open_checkpoint

TOGETHER = 16
_ROUNDS = 100


def projection(checkpoint: Path, cases: Sequence[Case]) -> dict[str, float]:
    """Milliseconds that a packet takes to be decoded, checked and projected, medians of rounds.

    Alone, and among `TOGETHER`, in turn; in this process, with nothing else under way.
    """
    admission = PacketPreprocessor(open_checkpoint(checkpoint), Settings(checkpoint=checkpoint))
    bodies = [case.packet for case in cases[:: max(1, len(cases) // TOGETHER)]][:TOGETHER]
    alone, merge_streams = [], []
    with threadpool_limits(1):  # as many threads as the gateway has on a small machine
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            for body in bodies:
                admission.project_batch([body])
            middle = time.perf_counter()
            admission.project_batch(bodies)
            merge_streams.append(time.perf_counter() - middle)
            alone.append(middle - begin)
    per_packet = 1e3 / len(bodies)
    return {
        "admit_alone_ms": round(per_packet * statistics.median(alone), 3),
        f"admit_among_{TOGETHER}_ms": round(per_packet * statistics.median(merge_streams), 3),
    }

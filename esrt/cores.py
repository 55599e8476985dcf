"""Number of CPU cores that this process may use."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Greatest value of the options for threads; the runtimes hold the number in 32 bits.
MAX_THREADS = 1024


def usable_cores(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int:
    """The cores of this process's affinity, at most those of its CPU quota; at least 1.

    `os.cpu_count` counts the cores of the machine. With that many threads in a container, some of
    them would wait for cores that they never get.

    Args:
        membership: file with the control groups of this process; without it there is no quota.
        mount: folder where the control groups are mounted, version 1 or 2.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have none
        cores = os.cpu_count() or 1
    # A part of a core is none: threads beyond the quota would stop all threads for a while.
    return max(1, min([cores, *map(int, _quotas(membership, mount))]))


def _quotas(membership: Path, mount: Path) -> Iterator[float]:
    """Yield the CPU quota of each control group around this process, in cores."""
    try:
        lines = membership.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container may see the path on its host, of which only the mounted folder exists.
        root = mount / controllers
        for folder in [root, *map(root.joinpath, _prefixes(path))]:
            with suppress(OSError, ValueError, ZeroDivisionError):
                if controllers:
                    quota = (folder / "cpu.cfs_quota_us").read_text("utf-8")
                    period = (folder / "cpu.cfs_period_us").read_text("utf-8")
                else:
                    quota, period = (folder / "cpu.max").read_text("utf-8").split()
                if int(quota) > 0:  # ValueError for "max"; -1 is the same in version 1
                    yield int(quota) / int(period)


def _prefixes(path: str) -> Iterator[str]:
    """Yield ``a``, ``a/b`` and ``a/b/c`` of ``/a/b/c``."""
    parts = path.strip("/").split("/")
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count])

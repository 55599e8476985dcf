"""Cores that a process may use: those of its affinity and of its CPU quota."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esrt.bundled import REPOSITORY
from esrt.cores import usable_cores

MANY = set(range(16))


@pytest.fixture(autouse=True)
def _affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: MANY)


def cores(folder: Path, membership: str, files: dict[str, str]) -> int:
    """The cores of a process with a membership, where the control groups have some files."""
    (folder / "membership").write_text(membership)
    for name, text in files.items():
        path = folder / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return usable_cores(folder / "membership", folder / "mount")


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        # Version 2: a container, a service within a slice, no limit, less than a core.
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/a.slice/b.service\n", {"a.slice/b.service/cpu.max": "250000 100000\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 16),
        # Of a container that sees the path on its host.
        ("0::/kubepods/pod1\n", {"cpu.max": "100000 100000\n"}, 1),
        # Version 1.
        ("4:memory:/a\n1:cpu,cpuacct:/a\n",
         {"cpu,cpuacct/a/cpu.cfs_quota_us": "350000\n",
          "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, 3),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        # Nothing to read, or nonsense.
        ("0::/\n", {}, 16),
        ("", {}, 16),
        ("0::/\n", {"cpu.max": "soon\n"}, 16),
        ("0::/\n", {"cpu.max": "1 0\n"}, 16),
    ],
)  # fmt: skip
def test_the_quota_limits_the_cores(
    tmp_path: Path, membership: str, files: dict[str, str], expected: int
) -> None:
    assert cores(tmp_path, membership, files) == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 16


def test_a_system_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores(tmp_path / "none", tmp_path / "none") == (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity")
def test_the_defaults_of_the_commands_follow_the_affinity() -> None:
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from edge_runtime.backends import DEFAULT_THREADS
from cloud_vllm import env_defaults
os.environ.pop("OMP_NUM_THREADS", None)
env_defaults.prepare()
print(DEFAULT_THREADS, os.environ["OMP_NUM_THREADS"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 1\n"

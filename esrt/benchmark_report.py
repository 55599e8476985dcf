"""JSON report of a benchmark: machine, versions, settings, rows of results, and thresholds."""

import dataclasses
import json
import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from esrt.cores import usable_cores
from esrt.files import replace_file


@dataclass(frozen=True)
class Threshold:
    """A figure and its bound.

    Attributes:
        name: name of the figure.
        value: measured value.
        bound: largest accepted value, or smallest with ``at_least``.
        at_least: whether ``bound`` is a lower bound.
    """

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the value is within its bound; false for NaN."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        """One line for the report."""
        side = "at least" if self.at_least else "at most"
        verdict = "met" if self.passed else "missed"
        return f"{self.name} {self.value:.3f}, bound {side} {self.bound:g}: {verdict}"


@dataclass(frozen=True)
class BenchmarkReport:
    """Result of a benchmark.

    Attributes:
        settings: settings of the benchmark.
        rows: one JSON object per measurement.
        bars: thresholds of the figures.
        tools: names of the distributions whose versions are recorded.
        more: further entries of the JSON object.
    """

    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    bars: list[Threshold]
    tools: tuple[str, ...]
    more: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the report as JSON; a failure keeps the former file."""
        data = {
            "machine": machine(),
            "versions": {name: version(name) for name in self.tools},
            "commit": commit(),
            "settings": self.settings,
            **self.more,
            "rows": self.rows,
            "bars": [{**dataclasses.asdict(bar), "holds": bar.passed} for bar in self.bars],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as partial:
            partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")


def machine() -> dict[str, Any]:
    """Processor, number of cores, architecture and operating system of this machine."""
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": usable_cores(),
        "architecture": platform.machine(),
        "system": platform.system(),
    }


def commit() -> str | None:
    """Short hash of the checkout's commit, with ``+`` if files differ; ``None`` outside of git."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()

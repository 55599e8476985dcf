"""What every measurement writes: where and what it ran, its rows, and the bars it is held to."""

import dataclasses
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Threshold:
    """A figure with its bound, which it must not exceed, or with ``at_least`` must reach."""

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the figure is within its bound; a NaN is not."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        """One line for the report."""
        verdict = "holds" if self.passed else "misses"
        return f"{self.name} {self.value:.3f}, bound {self.bound:g}: {verdict}"


@dataclass(frozen=True)
class BenchmarkReport:
    """A measurement's result.

    ``tools`` are the distributions whose versions matter; ``more`` is what does not fit rows.
    """

    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    bars: list[Threshold]
    tools: tuple[str, ...]
    more: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
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
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
        partial.rename(path)


def machine() -> dict[str, Any]:
    """The processor, as Linux names it, and how many of its cores there are here."""
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
    }


def commit() -> str | None:
    """The checkout's commit, with a ``+`` where files differ from it; ``None`` outside of git."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()

"""pip, as the tests of packaging use it."""

import subprocess
import sys
from pathlib import Path

from esrt.bundled import REPOSITORY


def pip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run pip in the repository."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

"""The house rules of pyproject.toml: lint, format, types, and who may import whom."""

import subprocess
import sys
from pathlib import Path

import pytest

from esrt.bundled import REPOSITORY

CHECKS = {
    "lint": ("ruff", "check", "--quiet", "."),
    "format": ("ruff", "format", "--check", "--quiet", "."),
    "types": ("mypy",),
    "imports": ("lint-imports",),
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_is_in_order(check: str) -> None:
    tool, *arguments = CHECKS[check]
    command = Path(sys.executable).parent / tool
    done = subprocess.run(
        [str(command), *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{tool} {' '.join(arguments)}\n{done.stdout}{done.stderr}"

"""Lint, format, types, import rules and the openings of docstrings."""

import subprocess
import sys
from pathlib import Path

import pytest

from esrt.bundled import REPOSITORY
from tests.count_riddles import count_riddles, riddles

CHECKS = {
    "lint": ("ruff", "check", "--quiet", "."),
    "format": ("ruff", "format", "--check", "--quiet", "."),
    "types": ("mypy",),
    "imports": ("lint-imports",),
}


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes(check: str) -> None:
    tool, *arguments = CHECKS[check]
    command = Path(sys.executable).parent / tool
    done = subprocess.run(
        [str(command), *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{tool} {' '.join(arguments)}\n{done.stdout}{done.stderr}"


def test_no_docstring_opens_with_a_riddle() -> None:
    assert count_riddles() == []


def test_a_riddle_is_found_wherever_a_docstring_may_stand() -> None:
    source = '"""Fine."""\nclass A:\n    """What it is."""\n    async def b(): "How so."\n'
    assert list(riddles(source)) == [(3, "What it is."), (4, "How so.")]
    assert not list(riddles('"""Whatever follows is allowed: Items, Ofen, Allowed."""'))

"""Docstrings that open with a riddle: run as a script, it lists them and exits 1 if there is any.

A docstring begins with the noun or the verb of the thing. "What a request asks for" makes the
reader guess the noun, so the openings in `RIDDLES` are refused.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
RIDDLES = frozenset(
    "what what's who whoever where those it they how of all beside".split()
)  # first words, in lower case
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def riddles(source: str) -> Iterator[tuple[int, str]]:
    """Line number and first line of each docstring that opens with a riddle."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, _Documented) or not (text := ast.get_docstring(node)):
            continue
        first_word = re.match(r"[\w'’]*", text)
        if first_word and first_word[0].lower().replace("’", "'") in RIDDLES:
            yield node.body[0].lineno, text.splitlines()[0]


def count_riddles() -> list[str]:
    """``file:line: docstring`` for each riddle in the repository's Python files."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    files = [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]
    return [
        f"{name}:{line}: {text}"
        for name in files
        for line, text in riddles((REPOSITORY / name).read_text("utf-8"))
    ]


if __name__ == "__main__":
    found = count_riddles()
    print("\n".join(found) or "No docstring opens with a riddle.")
    sys.exit(bool(found))

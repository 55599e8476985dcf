"""``python -m benchmarks`` lists the benchmarks."""

import ast
from pathlib import Path

from esrt.cli import VersionOption, run


def main(version: VersionOption = False) -> None:
    """Print the first line of each benchmark's docstring, which holds its command."""
    folder = Path(__file__).parent
    for file in sorted(folder.rglob("*.py")):
        text = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]
        if "``python -m benchmarks." in text and file.name != "__init__.py":
            print(text.replace("``", ""))


if __name__ == "__main__":
    run(main)

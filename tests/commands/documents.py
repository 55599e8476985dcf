"""Shell commands that documents show in code blocks and in backticks."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt

SHELL = frozenset("sh bash shell console".split())
# First words of commands. A block without a language is shell if its first line begins with one.
PROGRAMS = frozenset(
    ".ci/run cd curl docker export for git helm kubectl make mkdir nginx openssl pip pipx podman"
    " promtool python python3 python3.11 qemu-aarch64-static ray sed serve source sudo uv".split()
)
PROGRAM_PREFIXES = (".venv/bin/", "build/runner/", "examples/", "esrt-")
_markdown = MarkdownIt().enable("table")


def is_command(line: str) -> bool:
    """Whether a line begins with a program, after assignments of variables."""
    words = line.split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    return bool(words) and (words[0] in PROGRAMS or words[0].startswith(PROGRAM_PREFIXES))


def block_commands(document: Path) -> list[str]:
    """Commands in code blocks, in order, without comments at the end of their lines."""
    found = []
    for token in _markdown.parse(document.read_text("utf-8")):
        if token.type not in ("fence", "code_block"):
            continue
        language = token.info.strip()
        if language in SHELL or (not language and is_command(token.content.lstrip())):
            found += _split(token.content)
    return found


def inline_commands(document: Path) -> Iterator[str]:
    """Commands with arguments in backticks."""
    for token in _markdown.parse(document.read_text("utf-8")):
        for child in token.children or ():
            if child.type == "code_inline" and " " in child.content and is_command(child.content):
                yield child.content


def _split(block: str) -> list[str]:
    found, lines = [], list[str]()
    for line in block.splitlines():
        if lines or (line.strip() and not line.lstrip().startswith("#")):
            lines.append(re.sub(r"(?<=\S)\s+# .*$", "", line).rstrip())
            if _is_complete("\n".join(lines)):
                found.append("\n".join(lines))
                lines = []
    assert not lines, f"not a complete command: {lines}"
    return found


def _is_complete(command: str) -> bool:
    """Whether bash needs no further line to run a command."""
    if command.endswith("\\"):
        return False
    parsed = subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False)
    return parsed.returncode == 0

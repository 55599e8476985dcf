"""Line lengths, links, paths and commands of all documents."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from esrt.bundled import REPOSITORY

COLUMNS = 100
ROOT = REPOSITORY.resolve()
FENCE = re.compile(r"^ *```.*?^ *```|^(?: {4}|\t).*?$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE_ENDING = re.compile(r"\.(py|md|json|ya?ml|txt|toml|png|cpp|conf|flac|safetensors|sh)$|/$")
MADE_BY_COMMANDS = ("build/", ".venv", ".github/")


def repository_files() -> list[str]:
    """Paths of all files but the ignored ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


FILES = repository_files()
KNOWN = frozenset(FILES) | {str(folder) for name in FILES for folder in Path(name).parents}
DOCUMENTS = [ROOT / name for name in FILES if name.endswith(".md")]
TARGETS = frozenset(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def exists(name: str) -> bool:
    """Whether the path of a file or folder of the repository ends with a name."""
    name = name.rstrip("/")
    return any(f"/{known}".endswith(f"/{name}") for known in KNOWN)


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without code blocks and tables."""
    without_code = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for number, line in enumerate(without_code.splitlines(), 1):
        if not line.lstrip().startswith("|"):
            yield number, line


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@each_document
def test_prose_is_wrapped(document: Path) -> None:
    long = [
        f"{document.name}:{number}"
        for number, line in prose(document.read_text("utf-8"))
        if len(re.sub(r"\]\([^)]*\)", "]", line)) > COLUMNS
    ]
    assert long == []


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in LINK.findall(document.read_text("utf-8")):
        if re.match(r"https?:|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = document.parent / file if file else document
        if not target.exists():
            broken.append(link)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            if anchor not in map(slug, headings):
                broken.append(link)
    assert broken == []


@each_document
def test_paths_in_backticks_exist(document: Path) -> None:
    if document.name == "CHANGELOG.md":
        return  # its history names files by the names of their time
    text = re.sub(r"^ *```.*?^ *```", "", document.read_text("utf-8"), flags=re.DOTALL | re.M)
    missing = [
        name
        for name in CODE.findall(text)
        if re.fullmatch(r"[\w./-]+", name)
        and ("/" in name.rstrip("/") or name.endswith(".py"))
        and not name.startswith(("/", *MADE_BY_COMMANDS))
        and FILE_ENDING.search(name)
        and not exists(name)
    ]
    assert missing == []


@each_document
def test_commands_name_what_exists(document: Path) -> None:
    if document.name == "CHANGELOG.md":
        return
    text = document.read_text("utf-8")
    missing = []
    for module in re.findall(r"python3? -m\s+([\w.]+[\w])", text):
        path = module.replace(".", "/")
        own = (ROOT / module.partition(".")[0]).is_dir()
        if own and not {f"{path}.py", f"{path}/__main__.py"} & KNOWN and "NAME" not in path:
            missing.append(f"python -m {module}")
    missing += [file for file in re.findall(r"python3? ([\w./-]+\.py)", text) if not exists(file)]
    commands = re.findall(r"(?:^ *|`)make ([a-z]+)", text, re.MULTILINE)
    missing += [f"make {target}" for target in commands if target not in TARGETS]
    assert missing == []

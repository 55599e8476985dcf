"""Commands of the documents: each is run as typed, or listed here with the reason against it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from esrt.bundled import REPOSITORY
from tests.commands.conftest import ADDRESS, Workspace
from tests.commands.documents import block_commands, inline_commands
from tests.docs.test_docs import DOCUMENTS, ROOT

# Documents in the order in which a reader needs them: artifacts, gateways and keys remain.
ORDER = ("README.md", "examples/README.md", "docs/security.md")
# Commands that no test runs as typed; make's and Python's are checked as far as their options.
NOT_RUN = {
    r"make (test|check)|\.ci/run": "it would run these tests again",
    r"\.venv/bin/(ruff|mypy|lint-imports).*|.* tests/count_riddles\.py": "test_code_quality.py runs"
    " it",
    r".* -m pytest .*": "these tests run anyway",
    r".* tests/golden/make_\w+\.py": "tests/esrt runs it and compares its files",
    r"make setup.*": "downloads gigabytes; the environment of these tests was made by it",
    r"(pip|.* -m pip|uv) .*": "downloads packages",
    r".*YOUR-.*": "has a placeholder for the reader's own host or key",
    r"make demo CLIP=.*": "the same target with other variables; `make -n` is run",
    r"make (corpus|(train|evaluate|codec)(-mini)?|ablation)|.* -m training\.codec": "takes up to"
    " hours; tests/training runs the modules on a small corpus",
    r"make runner|(build/runner/|qemu-aarch64-static ).*": "tests/benchmarks/test_runner.py builds"
    " the runner and runs it with an artifact",
    r".* -m benchmarks\.\w+ .*": "takes minutes to hours; tests/benchmarks runs small cases",
    r".* export/to_(executorch|coreml)\.py": "takes a minute; tests/export runs the command on a"
    " small checkpoint",
    r".* -m export\.doctor ARTIFACT.*": "a form with placeholders; tests/export/test_doctor.py",
    r"sudo nginx .*": "needs root; tests/deploy/test_nginx.py runs nginx with the file",
    r"(\.venv/bin/(ray|serve)|export RAY_\w+).*": "starts a cluster;"
    " tests/cloud_vllm/test_serve_ray.py applies the file",
    r"(docker|podman|helm|.*kubectl) .*": "needs a container engine or a cluster",
    r"git clone .*": "the repository is here already",
    r"(pipx|pre-commit) .*": "pre-commit is not part of the environment;"
    " tests/docs/test_contributing.py compares its hooks with the tests",
}
SERVER = re.compile(r"\.venv/bin/python -m cloud_vllm( --[^ ]+ [^ ]+)*")
TRANSLATION = "Nehmen Sie die Tabletten 10 Tage lang."
# Words in the output of commands whose success alone says little.
OUTPUT = {
    r"make demo": f"translation:  {TRANSLATION}",
    r".* edge_runtime translate .*": f"translation:  {TRANSLATION}",
    r"curl .*translate.*": f'"translation":"{TRANSLATION}"',
    r".*translate_file .*": f"translation: {TRANSLATION}",
    r".*translate_talk .*": f"1: Take the tablets for 10 days.\n   {TRANSLATION}",
    r"examples/curl\.sh .*": '"translation":"Prenez les comprimés pendant 10 jours."',
    r".* keys list +--key-file .*": "Anna's phone",
    r".* keys revoke .*": "Revoked",
}
# Files of the repository that a document's commands write again.
WRITTEN = {"docs/training.md": ["training/recipes/nano.contaminated.txt"]}


def matches(pattern: str, command: str) -> bool:
    return re.fullmatch(pattern, command, re.DOTALL) is not None


def is_run(command: str) -> bool:
    return not any(matches(pattern, command) for pattern in NOT_RUN)


def ordered() -> list[Path]:
    names = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
    first = [name for name in ORDER if name in names]
    return [ROOT / name for name in first + sorted(set(names) - set(first))]


@pytest.mark.parametrize(
    "document",
    [path for path in ordered() if any(map(is_run, block_commands(path)))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_commands_run_as_typed(document: Path, workspace: Workspace) -> None:
    environment, address = dict[str, str](), ""
    for command in filter(is_run, block_commands(document)):
        if SERVER.fullmatch(command):
            address = workspace.serve(command, **environment)
            continue
        if command.startswith("git archive"):
            environment["GIT_DIR"] = git_folder(command)
        if command in workspace.outputs:
            continue  # another document shows it too
        output = workspace.run(with_key_id(command, workspace), address, **environment)
        for pattern, words in OUTPUT.items():
            if matches(pattern, command):
                assert words in output, f"{command}\n{output}"
    for file in WRITTEN.get(str(document.relative_to(ROOT)), ()):
        assert (workspace.folder / file).read_bytes() == (ROOT / file).read_bytes()


def git_folder(command: str) -> str:
    """The repository's history, which the copy lacks."""
    commit = command.split()[2]
    git = ["git", "-C", str(REPOSITORY)]
    if subprocess.run([*git, "cat-file", "-e", commit], capture_output=True).returncode:
        pytest.skip(f"commit {commit} is missing: this clone has no history")
    found = subprocess.run(
        [*git, "rev-parse", "--absolute-git-dir"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def with_key_id(command: str, workspace: Workspace) -> str:
    """Put the id of a key in place of the documents' example."""
    if "1a2b3c4d" not in command:
        return command
    listed = workspace.run(".venv/bin/python -m cloud_vllm keys list --key-file keys.json")
    return command.replace("1a2b3c4d", listed.split()[0])


def test_the_readme_shows_what_the_demo_prints(workspace: Workspace) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    shown = re.search(r"^```\w*\n(transcript: .*?)^```", text, re.DOTALL | re.MULTILINE)
    assert shown
    lines = without_figures(shown[1])
    printed = workspace.outputs.get("make demo") or workspace.run("make demo")
    assert without_figures(printed)[-len(lines) :] == lines


def without_figures(text: str) -> list[str]:
    """Lines with every number as 0, and with single spaces."""
    return [" ".join(re.sub(r"\d[\d.,]*", "0", line).split()) for line in text.splitlines()]


def test_every_document_names_programs_of_the_environment_by_their_path() -> None:
    bare = re.compile(r"(python3?|pytest|ray|serve) ")
    found = [
        f"{document.relative_to(ROOT)}: {command}"
        for document in DOCUMENTS
        if document.name != "CHANGELOG.md"
        for command in (*block_commands(document), *inline_commands(document))
        if bare.match(command)
    ]
    assert found == []


def test_the_readme_s_python_example_translates(workspace: Workspace) -> None:
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example
    workspace.ensure_artifact()
    gateway = workspace.serve(".venv/bin/python -m cloud_vllm")
    (workspace.folder / "build/example.py").write_text(example[1].replace(ADDRESS, gateway))
    assert workspace.run(".venv/bin/python build/example.py") == f"{TRANSLATION}\n"


def test_other_variables_of_the_demo_reach_its_command(workspace: Workspace) -> None:
    commands = [one for one in block_commands(ROOT / "README.md") if one.startswith("make demo ")]
    assert commands
    for command in commands:
        variables = dict(word.split("=") for word in command.split()[2:])
        shown = workspace.run(command.replace("make", "make -n", 1))
        words = f'"{variables["CLIP"]}" --from {variables["FROM"]} --to {variables["TO"]}'
        assert words in shown
        assert (ROOT / variables["CLIP"]).exists()


def python_program(command: str) -> tuple[str, ...] | None:
    """Arguments of Python up to the subcommand, or None for another program."""
    words = command.split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    if not words or not re.fullmatch(r"(\.venv/bin/)?python3?", words[0]):
        return None
    program = words[1:3] if words[1] == "-m" else words[1:2]
    if program[-1].startswith("-"):
        return None  # a program text (-c)
    for word in words[1 + len(program) :]:
        if not re.fullmatch(r"[a-z]+", word):
            break
        program.append(word)
    return tuple(program)


def options_shown() -> dict[tuple[str, ...], set[str]]:
    """Options of each Python program in the documents that no test runs as typed."""
    shown: dict[tuple[str, ...], set[str]] = {}
    for document in DOCUMENTS:
        if document.name == "CHANGELOG.md":
            continue
        blocks = [command for command in block_commands(document) if not is_run(command)]
        for command in [*blocks, *inline_commands(document)]:
            options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", command))
            if options and (program := python_program(command)):
                shown.setdefault(program, set()).update(options)
    return shown


HELP = """
import contextlib, io, json, runpy, sys
texts = []
for *arguments, in json.load(sys.stdin):
    is_module = arguments[0] == "-m"
    sys.argv = [*arguments[is_module:], "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        if is_module:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    texts.append(text.getvalue())
print(json.dumps(texts))
"""


def test_help_knows_the_options(workspace: Workspace) -> None:
    """One process prints every help text, so it imports the libraries once."""
    shown = options_shown()
    done = subprocess.run(
        [sys.executable, "-c", HELP],
        cwd=workspace.folder,
        env=workspace.environment(COLUMNS="300", NO_COLOR="1", TERM="dumb"),
        input=json.dumps(list(shown)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    missing = {
        " ".join(program): lacking
        for (program, options), text in zip(
            shown.items(), json.loads(done.stdout.splitlines()[-1]), strict=True
        )
        if (lacking := options - set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)))
    }
    assert missing == {}

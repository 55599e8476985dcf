"""Builds the runner: ``python -m benchmarks.runner.build --target x86-64|aarch64``.

Its SDK, the headers and libraries of ExecuTorch, comes in executorch's wheels: the installed one
for this machine, and that of the same version for aarch64, which is fetched once and kept.
"""

import platform
import shutil
import subprocess
import sys
from enum import StrEnum
from importlib.metadata import distribution, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from zipfile import ZipFile

import typer

from esrt.cli import exit_on_error
from esrt.errors import EsrtError

SOURCE = Path(__file__).resolve().parent
FOLDER = SOURCE.parents[1] / "build" / "runner"
EXECUTABLE = "runner"
# What of the wheel is the SDK.
SDK_FOLDERS = ("executorch/include/", "executorch/lib/", "executorch/share/cmake/")


class ExportRecipe(StrEnum):
    """The processors to build for: this machine's, and that of a phone."""

    X86_64 = "x86-64"
    AARCH64 = "aarch64"


# The second is named in aarch64.cmake too.
COMPILERS = {ExportRecipe.X86_64: "c++", ExportRecipe.AARCH64: "aarch64-linux-gnu-g++"}


def sdk(target: ExportRecipe) -> Path:
    """Where the SDK for a target lies, or will lie once it is fetched."""
    if target is ExportRecipe.AARCH64:
        return FOLDER / f"sdk-{target}-{version('executorch')}" / "executorch"
    return Path(str(distribution("executorch").locate_file("executorch")))


def fetch(target: ExportRecipe) -> None:
    """Download the target's SDK unless it is there; whole or not at all.

    Raises:
        EsrtError: the package registry is out of reach or has no such wheel.
    """
    home = sdk(target)
    if home.exists():
        return
    wheel = f"executorch=={version('executorch')}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".fetch.", dir=FOLDER) as temporary:
        _run(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary=:all:", "--platform", f"manylinux_2_28_{target}"),
            *("--dest", temporary, wheel),
            failure=f"pip could not fetch {wheel} for {target}.",
        )
        (archive,) = Path(temporary).glob("*.whl")
        unpacked = Path(temporary) / "unpacked"
        with ZipFile(archive) as file:
            members = [name for name in file.namelist() if name.startswith(SDK_FOLDERS)]
            file.extractall(unpacked, members)
        unpacked.rename(home.parent)


def missing(target: ExportRecipe) -> str | None:
    """What a build for a target lacks here, in words; ``None`` when it lacks nothing."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the runner is built on x86-64 Linux, and this is {platform.platform()}"
    tools = [tool for tool in ("cmake", "make", COMPILERS[target]) if not shutil.which(tool)]
    if tools:
        return f"not installed: {', '.join(tools)}"
    return None if sdk(target).exists() else f"ExecuTorch's SDK for {target} was not fetched"


def build(target: ExportRecipe, out: Path) -> Path:
    """Build from what is on this machine.

    Args:
        target: what for.
        out: a folder that becomes the runner and the libraries that it needs, whole or not at
            all; an existing one is replaced. It can be moved.

    Returns:
        The executable.

    Raises:
        EsrtError: something is missing, or the compiler failed, having said why.
    """
    if lack := missing(target):
        raise EsrtError(f"The runner for {target} cannot be built: {lack}.", "Run: make runner.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        objects, folder = Path(temporary) / "objects", Path(temporary) / "folder"
        failure = f"The runner for {target} could not be built."
        _run(
            *("cmake", "-S", str(SOURCE), "-B", str(objects), "-G", "Unix Makefiles"),
            *(
                ("--toolchain", str(SOURCE / "aarch64.cmake"))
                if target is ExportRecipe.AARCH64
                else ()
            ),
            f"-Dexecutorch_DIR={sdk(target) / 'share' / 'cmake'}",
            failure=failure,
        )
        _run("cmake", "--build", str(objects), failure=failure)
        _run(
            *("cmake", "--install", str(objects), "--strip", "--prefix", str(folder)),
            failure=failure,
        )
        shutil.rmtree(out, ignore_errors=True)
        folder.rename(out)
    return out / EXECUTABLE


def _run(*command: str, failure: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        raise EsrtError(failure, "Its messages are above.")


def main(
    target: Annotated[ExportRecipe, typer.Option(help="What to build for.")] = ExportRecipe.X86_64,
    fetch_only: Annotated[bool, typer.Option("--fetch-only", help="Only fetch the SDK.")] = False,
) -> None:
    """Build the runner into build/runner/TARGET, fetching the SDK first where it is missing."""
    with exit_on_error():
        fetch(target)
        if not fetch_only:
            print(build(target, FOLDER / target))


if __name__ == "__main__":
    typer.run(main)

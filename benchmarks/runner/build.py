"""Build of the runner: ``python -m benchmarks.runner.build --target x86-64|aarch64``.

The SDK, headers and libraries of ExecuTorch, is part of the executorch wheels. For this machine it
is in the installed package. For aarch64 the wheel of the same version is downloaded once.
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

from esrt.bundled import REPOSITORY
from esrt.cli import VersionOption, run
from esrt.errors import EsrtError
from esrt.files import replace_folder

SOURCE = Path(__file__).resolve().parent
FOLDER = REPOSITORY / "build" / "runner"
EXECUTABLE = "runner"
# Folders of the wheel that form the SDK.
SDK_FOLDERS = ("executorch/include/", "executorch/lib/", "executorch/share/cmake/")


class Target(StrEnum):
    """Processor to build for: that of this machine, or that of a phone."""

    X86_64 = "x86-64"
    AARCH64 = "aarch64"


# aarch64.cmake names the second compiler too.
COMPILERS = {Target.X86_64: "c++", Target.AARCH64: "aarch64-linux-gnu-g++"}


def sdk(target: Target) -> Path:
    """Folder of the SDK for a target, which may still have to be fetched."""
    if target is Target.AARCH64:
        return FOLDER / f"sdk-{target}-{version('executorch')}" / "executorch"
    return Path(str(distribution("executorch").locate_file("executorch")))


def fetch(target: Target) -> None:
    """Download the SDK for a target, whole or not at all, unless the folder exists.

    Raises:
        EsrtError: the package registry cannot be reached or has no such wheel.
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


def missing(target: Target) -> str | None:
    """Reason why the runner cannot be built for a target here, or ``None``."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the build needs x86-64 Linux, but this is {platform.platform()}"
    tools = [tool for tool in ("cmake", "make", COMPILERS[target]) if not shutil.which(tool)]
    if tools:
        return f"not installed: {', '.join(tools)}"
    return None if sdk(target).exists() else f"ExecuTorch's SDK for {target} was not fetched"


def build(target: Target, out: Path) -> Path:
    """Build without network.

    Args:
        target: the processor.
        out: folder for the runner and its libraries, written whole or not at all. An existing
            folder is replaced. The folder can be moved.

    Returns:
        The executable.

    Raises:
        EsrtError: a tool or the SDK is missing, or the compiler failed.
    """
    if reason := missing(target):
        raise EsrtError(f"The runner for {target} cannot be built: {reason}.", "Run: make runner.")
    with replace_folder(out) as folder, TemporaryDirectory() as objects:
        failure = f"The runner for {target} could not be built."
        _run(
            *("cmake", "-S", str(SOURCE), "-B", objects, "-G", "Unix Makefiles"),
            *(("--toolchain", str(SOURCE / "aarch64.cmake")) if target is Target.AARCH64 else ()),
            f"-Dexecutorch_DIR={sdk(target) / 'share' / 'cmake'}",
            failure=failure,
        )
        _run("cmake", "--build", objects, failure=failure)
        _run("cmake", "--install", objects, "--strip", "--prefix", str(folder), failure=failure)
    return out / EXECUTABLE


def _run(*command: str, failure: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        raise EsrtError(failure, "See the messages above.")


def main(
    target: Annotated[Target, typer.Option(help="Processor to build for.")] = Target.X86_64,
    fetch_only: Annotated[
        bool, typer.Option("--fetch-only", help="Fetch the SDK, and do not build.")
    ] = False,
    version: VersionOption = False,
) -> None:
    """Build the runner into build/runner/TARGET; fetch a missing SDK first."""
    fetch(target)
    if not fetch_only:
        print(build(target, FOLDER / target))


if __name__ == "__main__":
    run(main)

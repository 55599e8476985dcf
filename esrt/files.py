"""Atomic replacement of files and folders: a failed write keeps the former content."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from esrt.errors import EsrtError


def refuse_input(out: Path, *inputs: Path) -> None:
    """Refuse an output file that is one of the inputs, also by another name or through a link.

    Raises:
        EsrtError: writing ``out`` would destroy an input.
    """
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise EsrtError(f"{out} is an input of this command.", "Name another file.")


@contextmanager
def replace_file(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield an empty temporary file; it replaces ``path`` when the block succeeds.

    The temporary file lies in the same folder, so that the replacement is one step. Where ``path``
    is a link, the file that the link names is replaced. A block that fails leaves ``path`` as it
    was and no temporary file.

    Args:
        path: the file to write.
        mode: permissions of the new file, before the process's umask.

    Raises:
        OSError: the folder does not exist or cannot be written to.
    """
    path = path.resolve()
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode))
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it replaces ``path`` when the block succeeds.

    The former folder is removed only after the new one is in its place. A block that fails leaves
    ``path`` as it was and no temporary folder. Missing parent folders are created.

    Args:
        path: the folder to write; a link is followed.

    Raises:
        OSError: the parent folder cannot be written to.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o755)
        former = partial.with_name(f"{partial.name}.former")
        if path.exists():
            path.rename(former)
        partial.rename(path)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

"""Console scripts: each imports its command late, so that a missing extra is a one-line error."""

import sys
from importlib import import_module

from esrt.cli import application, exit_on_error, run


def edge() -> None:
    """Run ``esrt-edge``, the same as ``python -m edge_runtime``."""
    _run("edge_runtime.cli")


def gateway() -> None:
    """Run ``esrt-gateway``, the same as ``python -m cloud_vllm``."""
    _run("cloud_vllm.cli")


def export() -> None:
    """Run ``esrt-export KIND``, the same as ``python export/to_KIND.py``."""
    _run("export.__main__")


def doctor() -> None:
    """Run ``esrt-doctor``, the same as ``python -m export.doctor``."""
    _run("export.doctor")


def _run(module: str) -> None:
    if sys.argv[1:] == ["--version"]:  # needs no extra
        run(application("Print the version."))
    with exit_on_error():
        import_module(module).main()

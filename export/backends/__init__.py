"""Registry of export backends: every folder here is one.

A backend's package holds three names:

- ``KIND`` in ``__init__.py``: the ``kind`` in its artifacts' manifests;
- ``RECIPE`` in ``recipe.py``: an `export.recipe.ExportRecipe`;
- ``load_runner`` in ``runner.py``: loads an artifact's file and returns the function that runs it.

The two modules are imported on demand, so that one format's tools are enough to use it.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from esrt.errors import ArtifactError
from export.graph_io import Runner

if TYPE_CHECKING:
    from export.recipe import ExportRecipe


def kinds() -> tuple[str, ...]:
    """Kinds of artifact that can be exported."""
    return tuple(_packages())


def get_recipe(kind: str) -> "ExportRecipe":
    """Import the recipe of a kind.

    Raises:
        ArtifactError: no backend is of this kind.
    """
    recipe: ExportRecipe = importlib.import_module(f"{_package(kind)}.recipe").RECIPE
    return recipe


def get_runner_loader(kind: str) -> Callable[[Path], Runner]:
    """Import the run time of a kind, without its export tools.

    Raises:
        ArtifactError: no backend is of this kind.
    """
    loader: Callable[[Path], Runner] = importlib.import_module(
        f"{_package(kind)}.runner"
    ).load_runner
    return loader


def _package(kind: str) -> str:
    try:
        return _packages()[kind]
    except KeyError:
        raise ArtifactError(
            f"No export backend makes artifacts of kind {kind!r}.",
            f"Use one of: {', '.join(kinds())}.",
        ) from None


@functools.cache
def _packages() -> dict[str, str]:
    """Name of each kind's package.

    Raises:
        ValueError: two packages have the same kind.
    """
    packages: dict[str, str] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        kind = importlib.import_module(module.name).KIND
        if kind in packages:
            raise ValueError(f"{packages[kind]} and {module.name} are both of kind {kind!r}.")
        packages[kind] = module.name
    return packages

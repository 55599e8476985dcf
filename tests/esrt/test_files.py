"""Atomic replacement of files and folders."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from esrt.errors import EsrtError
from esrt.files import refuse_input, replace_file, replace_folder


@pytest.fixture
def umask() -> Iterator[None]:
    former = os.umask(0o022)
    yield
    os.umask(former)


def write_half(path: Path) -> None:
    path.write_text("half")
    raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("first", "second"):
        with replace_file(path) as partial:
            former = path.read_text() if path.exists() else None
            assert partial.read_text() == ""
            partial.write_text(content)
        assert (former, path.read_text()) == (None if content == "first" else "first", content)
        assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("former", ["former", None])
def test_a_failed_block_leaves_the_file(tmp_path: Path, former: str | None) -> None:
    path = tmp_path / "file"
    if former is not None:
        path.write_text(former)
    with pytest.raises(KeyboardInterrupt), replace_file(path) as partial:
        write_half(partial)
    assert names(tmp_path) == ([] if former is None else ["file"])
    assert former is None or path.read_text() == former


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("former")
    link = tmp_path / "link"
    link.symlink_to(folder / "file")
    with replace_file(link) as partial:
        partial.write_text("new")
    assert link.is_symlink()
    assert (folder / "file").read_text() == "new"
    assert names(folder) == ["file"]


@pytest.mark.parametrize(("mode", "expected"), [(0o666, 0o644), (0o600, 0o600)])
def test_mode_of_a_file(umask: None, tmp_path: Path, mode: int, expected: int) -> None:
    path = tmp_path / "file"
    path.touch(mode=0o400)
    with replace_file(path, mode=mode) as partial:
        assert stat.S_IMODE(partial.stat().st_mode) == expected
    assert stat.S_IMODE(path.stat().st_mode) == expected


def test_a_file_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "missing" / "file"):
        pass
    assert names(tmp_path) == []


def test_a_folder_is_replaced_when_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "folder"
    for name in ("first", "second"):
        with replace_folder(path) as partial:
            assert names(partial) == []
            (partial / name).touch()
            assert not (path / name).exists()
        assert names(path) == [name]
        assert names(path.parent) == ["folder"]


@pytest.mark.parametrize("former", [True, False])
def test_a_failed_block_leaves_the_folder(tmp_path: Path, former: bool) -> None:
    path = tmp_path / "folder"
    if former:
        path.mkdir()
        (path / "former").touch()
    with pytest.raises(KeyboardInterrupt), replace_folder(path) as partial:
        write_half(partial / "file")
    assert names(tmp_path) == (["folder"] if former else [])
    assert not former or names(path) == ["former"]


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "folder")
    with replace_folder(link) as partial:
        (partial / "new").touch()
    assert link.is_symlink()
    assert names(tmp_path / "folder") == ["new"]
    assert names(tmp_path) == ["folder", "link"]


def test_mode_of_a_folder(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "folder"):
        pass
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    recipe, other, link = tmp_path / "recipe", tmp_path / "other", tmp_path / "link"
    recipe.touch()
    other.touch()
    link.symlink_to(recipe)
    refuse_input(tmp_path / "new", recipe, other)
    refuse_input(other, recipe, tmp_path / "missing")
    for out in (recipe, link):
        with pytest.raises(EsrtError, match="is an input"):
            refuse_input(out, other, recipe)

"""The image: one name and version in all files, and a build context without anything else."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_vllm.auth import keys
from esrt import __version__
from esrt.bundled import REPOSITORY
from tests.deploy.helpers import CONTAINERFILE, DEPLOY, MANIFESTS, pods

IMAGE = f"registry.example.com/esrt-gateway:{__version__}"


def test_all_files_name_the_same_image() -> None:
    for file in (*DEPLOY.iterdir(), *REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")):
        named = re.findall(r"[\w./-]*esrt-gateway:\S*[\w.]", file.read_text("utf-8"))
        assert set(named) <= {IMAGE}, file
    assert f" -t {IMAGE} ." in CONTAINERFILE
    readme = (DEPLOY / "README.md").read_text("utf-8")
    assert f"podman build -f deploy/Containerfile -t {IMAGE} ." in readme
    assert f"podman push {IMAGE}" in readme
    images = {
        item["image"] for name in MANIFESTS for pod in pods(name) for item in pod["containers"]
    }
    assert images == {IMAGE, "docker.io/library/nginx:1.30"}


def test_keys_are_made_by_the_image_as_the_readme_says(tmp_path: Path) -> None:
    readme = (DEPLOY / "README.md").read_text("utf-8")
    before = f'podman run --rm --user 0 --volume "$PWD:/keys" {IMAGE} \\\n'
    shown = re.findall(rf"^    {re.escape(before)} +(.*)$", readme, re.M)
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", CONTAINERFILE, re.M)
    program = [sys.executable, *json.loads(entry)[1:]]
    listed = "none"
    for arguments in shown:
        words = shlex.split(arguments.replace("/keys/", f"{tmp_path}/").replace("1a2b3c4d", listed))
        done = subprocess.run(
            [*program, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        if "list" in words:
            listed = done.stdout.split()[0]
    assert [arguments.split()[1] for arguments in shown] == ["create", "create", "list", "revoke"]
    (left,) = keys.read(tmp_path / "keys.json")
    assert left.scope is keys.Scope.METRICS


def test_the_build_context_has_what_the_image_needs_and_nothing_large() -> None:
    build = pytest.importorskip("docker.utils.build", reason="the Docker SDK is not installed")
    patterns = (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines()
    names = build.exclude_paths(str(REPOSITORY), patterns, dockerfile="deploy/Containerfile")
    files = {name for name in names if (REPOSITORY / name).is_file()}
    for sources in re.findall(r"^COPY (.*) \S+$", CONTAINERFILE, re.M):
        for source in sources.split():
            assert source in names, source
    kept = {name.split("/")[0] for name in files} - {".dockerignore", "deploy"}
    assert kept == {"LICENSE", "README.md", "cloud_vllm", "esrt", "lock.txt", "pyproject.toml"}
    assert not [name for name in files if "__pycache__" in name]
    assert sum((REPOSITORY / name).stat().st_size for name in files) < 1 << 20

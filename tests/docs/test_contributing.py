"""Files for contributors: hooks, workflow, forms of issues."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.test_docs import ROOT
from tests.test_code_quality import CHECKS

GITHUB = ROOT / ".github"
SCHEMAS = {
    "vendor.github-workflows": sorted((GITHUB / "workflows").iterdir()),
    "vendor.github-issue-forms": sorted((GITHUB / "ISSUE_TEMPLATE").iterdir()),
}


@pytest.mark.parametrize(
    ("schema", "file"),
    [(schema, file) for schema, files in SCHEMAS.items() for file in files],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_file_fits_the_schema_of_github(schema: str, file: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_hooks_are_the_checks_of_the_tests() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local", "a hook of another repository is downloaded"
    hooks = {hook["id"]: hook["entry"] for hook in repository["hooks"]}
    riddles = hooks.pop("riddles")
    assert riddles == ".venv/bin/python tests/count_riddles.py"
    assert hooks == {name: " ".join([".venv/bin/" + CHECKS[name][0], *CHECKS[name][1:]])
                     for name in CHECKS}  # fmt: skip


def test_the_workflow_runs_the_file_of_continuous_integration() -> None:
    (job,) = yaml.safe_load((GITHUB / "workflows/ci.yml").read_text())["jobs"].values()
    assert job["steps"][-1]["run"] == ".ci/run"
    assert os.access(ROOT / ".ci/run", os.X_OK)
    for step in job["steps"]:
        if action := step.get("uses"):
            assert len(action.partition("@")[2]) == 40, f"{action}: not pinned to a commit"


def test_labels_of_a_form_are_unique() -> None:
    for file in SCHEMAS["vendor.github-issue-forms"]:
        body = yaml.safe_load(file.read_text())["body"]
        labels = [part["attributes"]["label"] for part in body if part["type"] != "markdown"]
        assert len(set(labels)) == len(labels), file.name

"""Help, version and usage errors, alike for every command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import esrt
from esrt.bundled import REPOSITORY

COMMANDS = {
    "-m edge_runtime": ("", "translate", "encode"),
    "-m cloud_vllm": ("", "keys", "keys create", "keys list", "keys revoke"),
    "-m cloud_vllm.capacity": ("",),
    "-m export": ("", "onnx"),
    "-m export.doctor": ("",),
    "export/to_coreml.py": ("",),
    "export/to_executorch.py": ("",),
    "export/to_onnx.py": ("",),
    "demo.py": ("",),
    "-m benchmarks": ("",),
    **{
        f"-m benchmarks.{name}": ("",)
        for name in (
            *("bandwidth", "cloud", "encode", "full_size", "operators", "privacy", "robustness"),
            "runner.build",
        )
    },
    "-m training.corpus": ("", "build", "clips", "samples"),
    **{f"-m training.{name}": ("",) for name in "ablation cache codec evaluate train".split()},
}
HEAVY = {"torch", "transformers", "coremltools", "executorch", "onnx", "onnxruntime", "vllm", "ray"}
# Runs one command several times, with other arguments, as the interpreter would, in one process.
RUN = """
import contextlib, io, json, runpy, sys
target, *lines = sys.argv[1:]
results = []
for line in lines:
    sys.argv = [target.removeprefix("-m "), *line.split()]
    out, err = io.StringIO(), io.StringIO()
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if target.startswith("-m "):
                runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(target, run_name="__main__")
        except SystemExit as end:
            code = end.code
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps({"results": results, "modules": list(sys.modules)}))
"""


def run(target: str, *lines: str) -> tuple[list[tuple[int | None, str, str]], set[str]]:
    """Exit code, stdout and stderr for each command line; and the modules that were imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, target, *lines],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return [tuple(result) for result in found["results"]], set(found["modules"])  # type: ignore[misc]


def options(text: str) -> list[str]:
    """Each option with its description, as one line."""
    _, _, listed = text.partition("\nOptions:\n")
    found = re.findall(r"^  -.*(?:\n {4,}.*)*", listed, re.MULTILINE)
    return [re.sub(r"\n {3,}", "  ", option) for option in found]


@pytest.mark.parametrize("target", COMMANDS)
def test_help_and_version(target: str) -> None:
    lines = [f"{command} --help" for command in COMMANDS[target]]
    (*helps, version), modules = run(target, *lines, "--version")
    assert not modules & HEAVY, "help takes seconds"
    assert version == (0, f"esrt {esrt.__version__}\n", "")
    for code, text, errors in helps:
        assert (code, errors) == (0, "")
        for line in text.splitlines():
            assert len(line) <= 80, line
            assert not line.rstrip().endswith(("...", "…")) or line.startswith("Usage:"), line
        assert "--help" in text
        for option in options(text):
            assert re.fullmatch(r"  -\S.*?\S  +\S.*", option), f"no help: {option}"
            assert not re.search(r"<(str|path|int|float|list)", option), option


@pytest.mark.parametrize("target", COMMANDS)
def test_usage_errors_are_one_line(target: str) -> None:
    *_, (code, text, errors) = run(target, "--no-such-option")[0]
    assert (code, text) == (2, "")
    assert errors == "error: No such option: --no-such-option. Add --help to see the options.\n"


def test_the_demo_looks_at_the_file_before_the_languages() -> None:
    (missing, present), _ = run("demo.py", "nope.wav", "models/esrt-nano/samples/eng-1.flac")
    assert missing[0] == present[0] == 2
    assert missing[2].startswith("error: nope.wav cannot be read")
    assert present[2].startswith("error: The languages of the file are missing.")


def test_a_misspelt_command_is_proposed() -> None:
    ((code, _, errors),) = run("-m edge_runtime", "trnslate")[0]
    assert code == 2
    assert errors == (
        "error: No such command 'trnslate'. Did you mean 'translate'? Add --help to see the"
        " options.\n"
    )


def test_wrong_values_have_no_words_of_pydantic() -> None:
    results, _ = run(
        "-m edge_runtime", "translate x --codec mp3 --from eng --to deu", "encode x --threads two"
    )
    for (code, _, errors), words in zip(results, ("'mp3' is not one of", "--threads"), strict=True):
        assert code == 2
        assert words in errors
        assert not re.search(r"Value error|unable to parse|validation", errors)


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    """Packages of the extras that cannot be imported; `--version` needs none of them."""
    for name in ("fastapi", "pydantic_settings", "httpx", "soundfile", "torch", "onnx"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(name={name!r})")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    scripts = [f"-c 'from esrt.scripts import {name}; {name}()'" for name in ("edge", "gateway")]
    for command in ["-m edge_runtime", "-m cloud_vllm", *scripts]:
        for arguments in ("keys list" if "cloud" in command else "encode x --out y", "--version"):
            done = subprocess.run(
                ["bash", "-c", f"{sys.executable} {command} {arguments}"],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if arguments == "--version":
                assert (done.returncode, done.stdout) == (0, f"esrt {esrt.__version__}\n")
            else:
                assert done.returncode == 2
                assert re.fullmatch(
                    r"error: The package \w+ is not installed\. .*\n", done.stderr
                ), done.stderr


@pytest.mark.parametrize(
    ("target", "lines", "option"),
    [
        ("-m edge_runtime", ["encode x --out y --threads 3000000000"], "--threads"),
        ("-m edge_runtime", ["encode x --out y --threads 0"], "--threads"),
        ("-m cloud_vllm", ["--port 70000", "--port 1e400", "--port -1"], "--port"),
        ("-m cloud_vllm.capacity", [f"gemma-3-4b --gpus {10**30}"], "--gpus"),
        ("-m cloud_vllm.capacity", ["gemma-3-4b --gpu-gib 1e400"], "--gpu-gib"),
        ("-m cloud_vllm.capacity", ["gemma-3-4b --tokens-per-s inf"], "not finite"),
        ("export/to_onnx.py", ["--seconds 1e400", "--seconds nan", "--seconds -1"], "not take"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_one_line(target: str, lines: list[str], option: str) -> None:
    for code, text, errors in run(target, *lines)[0]:
        assert (code, text) == (2, "")
        assert option in errors
        assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "code", "names"),
    [
        ("-m benchmarks", 0, "bandwidth cloud encode full_size operators privacy robustness"),
        ("-m edge_runtime", 2, "translate encode"),
        ("-m export", 2, "coreml executorch onnx"),
    ],
)
def test_without_a_command_the_commands_are_listed(
    target: str, code: int | None, names: str
) -> None:
    ((found, text, errors),), modules = run(target, "")
    assert found == code
    assert not modules & HEAVY
    assert all(name in text + errors for name in names.split())


def test_an_export_without_the_installed_project_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "export/to_onnx.py", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: This project is not installed")
    assert "make setup" in line

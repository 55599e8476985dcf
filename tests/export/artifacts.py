"""A checkpoint whose features depend on the speech, and its artifacts."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from esrt.bundled import REPOSITORY
from esrt.checkpoint import Checkpoint, open_checkpoint
from export import quantization_error
from export.backends import get_recipe
from export.recipe import export
from tests.export.helpers import FORMS, Artifact, Exporter, Form
from tests.tiny_checkpoint import tiny_checkpoint


def lively_checkpoint(folder: Path) -> Checkpoint:
    """The tiny checkpoint with edge weights so large that features vary as trained ones do.

    With the small weights that models start with, every token is nearly its query, whatever the
    speech. A graph that ignored its input would pass.
    """
    checkpoint = tiny_checkpoint(folder)
    random = torch.Generator().manual_seed(27)
    weights = {
        name: torch.randn(tensor.shape, generator=random) * tensor[0].numel() ** -0.5
        if tensor.dim() > 1 and "embed_positions" not in name
        else tensor
        for name, tensor in checkpoint.edge_model().state_dict().items()
    }
    save_file(weights, checkpoint.folder / "edge.safetensors")
    return open_checkpoint(Path(checkpoint.folder))


def exporter(checkpoint: Checkpoint, folder: Path) -> Exporter:
    """Returns the artifact of a kind and a form, which is exported when it is first needed.

    The command exports the form ``int8``, its default; `export` exports the others.
    """

    @cache
    def exported(kind: str, name: str) -> Artifact:
        out, form = folder / kind / name, FORMS[name]
        if name == "int8":
            report = _run_command(kind, checkpoint.folder, out, folder / "work")
        else:
            report = _export(kind, checkpoint, out, form)
        return Artifact(out, get_recipe(kind), form, report)

    return exported


def _run_command(kind: str, checkpoint: Path, out: Path, folder: Path) -> str:
    """Run the command as a user types it, in another folder, without a prepared environment."""
    command = [sys.executable, str(REPOSITORY / "export" / f"to_{kind}.py")]
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [*command, "--checkpoint", str(checkpoint), "--out", str(out)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "" or kind != "coreml", done.stderr
    assert list(folder.iterdir()) == []  # the exporters' scratch files are gone
    return done.stdout


def _export(kind: str, checkpoint: Checkpoint, out: Path, form: Form) -> str:
    with pytest.MonkeyPatch.context() as patch:
        if form.kept is not None:
            layer, layer_errors = form.kept, quantization_error.layer_errors
            patch.setattr(
                quantization_error,
                "layer_errors",
                lambda *arguments, **options: {
                    name: 2 * quantization_error.MAX_RELATIVE_ERROR
                    if name.endswith(layer)
                    else error
                    for name, error in layer_errors(*arguments, **options).items()
                },
            )
        exported = export(
            *(get_recipe(kind), checkpoint, out, form.precision, form.split),
            seconds=form.seconds,
            activations=form.activations,
        )
    return "\n".join(f"{label} {text}" for label, text in exported.notes)

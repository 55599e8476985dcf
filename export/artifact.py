"""Folder of an artifact: safe replacement, and the manifest of its files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from esrt.checkpoint import Checkpoint
from esrt.config import ModelConfig
from esrt.errors import ArtifactError
from esrt.features import FRAMES_PER_SECOND, HOP, N_FFT, SAMPLE_RATE
from esrt.files import replace_folder
from esrt.manifest import (
    FORMAT,
    MANIFEST_FILE,
    FrontEnd,
    Manifest,
    Precision,
    Quantization,
    TensorSpec,
    sha256,
)
from esrt.speech import DEFAULT_SETTINGS
from esrt.wire import Split
from export.graph_io import INPUT, OUTPUT


@contextmanager
def artifact_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``out`` when the block succeeds.

    See `esrt.files.replace_folder`.

    Raises:
        ArtifactError: ``out`` exists and is neither an artifact nor an empty folder.
    """
    out = out.resolve()
    if out.exists() and not _is_artifact(out) and not _is_empty_folder(out):
        raise ArtifactError(
            f"{out} exists and is not an artifact.", "Choose another --out, or remove it yourself."
        )
    with replace_folder(out) as folder:
        yield folder


def _is_artifact(path: Path) -> bool:
    """Whether the folder holds an artifact's manifest; web apps have a file of the same name."""
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and {"fingerprint", "entry", "format"} <= manifest.keys()


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def describe(
    checkpoint: Checkpoint,
    config: ModelConfig,
    folder: Path,
    entry: str,
    *,
    kind: str,
    precision: Precision,
    split: Split,
    parity: dict[str, float],
    tools: tuple[str, ...],
    lengths: tuple[int, ...] = (),
    quantization: Quantization | None = None,
) -> Manifest:
    """Describe the files in ``folder`` as a manifest.

    Args:
        checkpoint: source of the artifact.
        config: the checkpoint's configuration, restricted to ``lengths``.
        folder: the artifact's folder.
        entry: name of the file to load.
        kind: format of the artifact.
        precision: number format of the weights and the arithmetic.
        split: end of the graph.
        parity: figures of the comparison with torch.
        tools: distributions whose versions are recorded.
        lengths: mel frames that the graph takes; empty for every length.
        quantization: of an int8 artifact.
    """
    width = config.feature_width(split)
    frames, tokens = (config.max_frames, config.max_tokens) if config.padded else (None, None)
    return Manifest(
        model=config.name,
        fingerprint=checkpoint.fingerprint,
        kind=kind,
        precision=precision,
        split=split,
        feature_width=width,
        max_tokens=config.max_tokens,
        inputs=(TensorSpec(INPUT, "float32", (1, config.encoder.mel_bins, frames)),),
        outputs=(TensorSpec(OUTPUT, "float32", (1, tokens, width)),),
        front_end=FrontEnd(
            sample_rate=SAMPLE_RATE,
            n_fft=N_FFT,
            hop=HOP,
            mel_bins=config.encoder.mel_bins,
            frame_multiple=config.frame_multiple,
            padded_seconds=config.padded_seconds,
            max_seconds=config.max_seconds,
            speech=DEFAULT_SETTINGS,
        ),
        languages=config.languages,
        entry=entry,
        files={
            str(path.relative_to(folder)): sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
        tools={name: version(name) for name in tools},
        parity=parity,
        created_from=checkpoint.folder.resolve().name,
        format=FORMAT,
        lengths=tuple(frames / FRAMES_PER_SECOND for frames in lengths),
        quantization=quantization,
    )

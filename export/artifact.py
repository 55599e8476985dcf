"""Writing an artifact's folder: the files, then the manifest, whole or not at all."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp

from esrt.checkpoint import Checkpoint
from esrt.config import ModelConfig
from esrt.errors import ArtifactError
from esrt.features import FRAMES_PER_SECOND, HOP, N_FFT, SAMPLE_RATE
from esrt.manifest import (
    FORMAT,
    MANIFEST_FILE,
    FrontEnd,
    Kind,
    Manifest,
    Precision,
    Quantization,
    TensorSpec,
    sha256,
)
from esrt.wire import Split
from export.tracing import INPUT, OUTPUT


@contextmanager
def artifact_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when the block ends well, and vanishes otherwise.

    Where ``out`` is a link, what it names is replaced.

    Raises:
        ArtifactError: something other than an artifact is in the way.
    """
    out = out.resolve()
    if out.exists() and not _is_artifact(out) and not _is_empty_folder(out):
        raise ArtifactError(
            f"{out} exists and is not an artifact.", "Name another --out, or remove it yourself."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        replaced = temporary.with_name(f"{temporary.name}.replaced")
        if out.exists():
            out.rename(replaced)
        temporary.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_artifact(path: Path) -> bool:
    """Whether its manifest is one of ours: web pages and extensions have a file of that name."""
    try:
        found = json.loads((path / MANIFEST_FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"fingerprint", "entry", "format"} <= found.keys()


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def describe(
    checkpoint: Checkpoint,
    config: ModelConfig,
    folder: Path,
    entry: str,
    *,
    kind: Kind,
    precision: Precision,
    split: Split,
    parity: dict[str, float],
    tools: tuple[str, ...],
    lengths: tuple[int, ...] = (),
    quantization: Quantization | None = None,
) -> Manifest:
    """The manifest of the files in ``folder``.

    ``config`` is the checkpoint's, as limited to ``lengths`` (mel frames); ``tools`` are the
    distributions to name.
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

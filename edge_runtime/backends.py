"""What runs an exported encoder: the `Backend` protocol and its implementations.

To add one: a class with `manifest` and `encode`, and a row of `_BACKENDS`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from esrt.arrays import Float32Array
from esrt.errors import ArtifactError
from esrt.features import HOP, MEL_BINS, N_FFT, SAMPLE_RATE
from esrt.manifest import Manifest, read_manifest

# A phone has about four fast cores, and more threads than that wait for the slow ones.
DEFAULT_THREADS = min(4, os.cpu_count() or 1)

_EXPORT = "Export it again with this version."
_ORT_FATAL = 4


class Backend(Protocol):
    """An encoder with its adapter, ready to run."""

    @property
    def manifest(self) -> Manifest:
        """The artifact's description."""
        ...

    def encode(self, mel: Float32Array) -> Float32Array:
        """Features (tokens, width) of a log-mel spectrogram (128, frames), both float32.

        Raises:
            ArtifactError: the graph refuses the input or returns another shape than it declares.
        """
        ...


class OnnxBackend:
    """An ONNX artifact on ONNX Runtime's CPU provider.

    The graph maps one input, float32 (1, 128, frames), to one output, float32
    (1, tokens, width); the manifest names them.

    Args:
        folder: the artifact's folder.
        threads: threads inside an operator; operators run one after the other.

    Raises:
        ArtifactError: missing, damaged, of another kind, or not the graph that it declares.
    """

    def __init__(self, folder: Path, *, threads: int = DEFAULT_THREADS) -> None:
        import onnxruntime  # only this backend needs it

        self._manifest = read_manifest(folder)
        _check_manifest(self._manifest, folder, kind="onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # The exceptions say the same as the log, which would break into a command's own output.
        options.log_severity_level = _ORT_FATAL
        try:
            self._session: Any = onnxruntime.InferenceSession(
                folder / self._manifest.entry, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            raise ArtifactError(
                f"ONNX Runtime cannot load {folder / self._manifest.entry}: {error}.", _EXPORT
            ) from error
        self._input = self._manifest.inputs[0].name
        self._output = self._manifest.outputs[0].name
        found = [value.name for value in self._session.get_inputs()]
        offered = [value.name for value in self._session.get_outputs()]
        if found != [self._input] or self._output not in offered:
            raise ArtifactError(
                f"The graph in {folder} maps {found} to {offered}, but its manifest declares"
                f" {self._input!r} to {self._output!r}.",
                _EXPORT,
            )

    @property
    def manifest(self) -> Manifest:
        """The artifact's description."""
        return self._manifest

    def encode(self, mel: Float32Array) -> Float32Array:
        """See :meth:`Backend.encode`."""
        try:
            (features,) = self._session.run([self._output], {self._input: mel[np.newaxis]})
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            raise ArtifactError(
                f"ONNX Runtime failed on an input of shape {mel.shape}: {error}.", _EXPORT
            ) from error
        _check_features(features, self._manifest)
        result: Float32Array = features[0]
        return result


class ExecuTorchBackend:
    """An ExecuTorch artifact on ExecuTorch's Python runtime: the phone's, behind torch tensors.

    Args:
        folder: the artifact's folder.
        threads: threads of the pool that all ExecuTorch backends of a process share; the first
            one decides, because a pool in use cannot be replaced.

    Raises:
        ArtifactError: missing, damaged, of another kind, or not the graph that it declares; or
            ExecuTorch or torch is not installed.
    """

    def __init__(self, folder: Path, *, threads: int = DEFAULT_THREADS) -> None:
        self._manifest = read_manifest(folder)
        _check_manifest(self._manifest, folder, kind="executorch")
        path = folder / self._manifest.entry
        try:  # only this backend needs them
            import torch
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
        except ImportError as error:
            raise ArtifactError(
                f"ExecuTorch artifacts need executorch and torch: {error}.",
                "Install them, or use an artifact of kind onnx.",
            ) from error
        self._tensor = torch.from_numpy
        try:
            with _quiet_native_log():
                if not _executorch_threads:
                    portable_lib._unsafe_reset_threadpool(threads)
                    _executorch_threads.append(threads)
                # The method runs in memory that the program holds.
                self._program: Any = Runtime.get().load_program(path)
                self._method: Any = self._program.load_method("forward")
                metadata = self._method.metadata
                inputs = [
                    metadata.input_tensor_meta(i).sizes() for i in range(metadata.num_inputs())
                ]
        except Exception as error:  # ExecuTorch's errors share no base of their own
            raise ArtifactError(f"ExecuTorch cannot load {path}: {error}.", _EXPORT) from error
        front_end = self._manifest.front_end
        longest = round(front_end.max_seconds * SAMPLE_RATE) // HOP
        longest -= longest % front_end.frame_multiple
        self._longest = longest
        if [tuple(sizes) for sizes in inputs] != [(1, MEL_BINS, longest)]:
            raise ArtifactError(
                f"The program in {folder} takes {inputs}, but its manifest declares"
                f" (1, {MEL_BINS}, up to {longest}).",
                _EXPORT,
            )

    @property
    def manifest(self) -> Manifest:
        """The artifact's description."""
        return self._manifest

    def encode(self, mel: Float32Array) -> Float32Array:
        """See :meth:`Backend.encode`."""
        # What does not fit may abort the process or, with a broken last block, pass unnoticed.
        bins, frames = mel.shape
        multiple = self._manifest.front_end.frame_multiple
        whole = frames % multiple == 0 and 0 < frames <= self._longest
        if mel.dtype != np.float32 or bins != MEL_BINS or not whole:
            raise ArtifactError(
                f"ExecuTorch failed on an input: it is {mel.dtype} {mel.shape}, but the program"
                f" takes float32 ({MEL_BINS}, up to {self._longest} in steps of {multiple}).",
                "Cut the speech into shorter segments.",
            )
        try:
            tensor = self._tensor(np.ascontiguousarray(mel[np.newaxis]))
            (output,) = self._method.execute([tensor])
        except Exception as error:  # ExecuTorch's errors share no base of their own
            raise ArtifactError(
                f"ExecuTorch failed on an input of shape {mel.shape}: {error}.", _EXPORT
            ) from error
        features = output.numpy()
        _check_features(features, self._manifest)
        result: Float32Array = features[0]
        return result


# How many threads the process's pool was given, once it was.
_executorch_threads: list[int] = []


@contextmanager
def _quiet_native_log() -> Iterator[None]:
    """Keep ExecuTorch's log, which knows no levels, out of a command's own output."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


_BACKENDS: dict[str, type[OnnxBackend] | type[ExecuTorchBackend]] = {
    "onnx": OnnxBackend,
    "executorch": ExecuTorchBackend,
}


def open_backend(folder: Path, *, threads: int = DEFAULT_THREADS) -> Backend:
    """Load an artifact with the backend for its kind.

    Raises:
        ArtifactError: missing or damaged, or of a kind that this runtime does not run.
    """
    kind = read_manifest(folder, verify=False).kind
    try:
        backend = _BACKENDS[kind]
    except KeyError:
        raise ArtifactError(
            f"The artifact in {folder} is of kind {kind!r}, which this runtime does not run.",
            f"Name one of kind {' or '.join(_BACKENDS)}.",
        ) from None
    return backend(folder, threads=threads)


def _check_manifest(manifest: Manifest, folder: Path, *, kind: str) -> None:
    """Refuse what this runtime's front end or graph contract cannot serve."""
    if manifest.kind != kind:
        raise ArtifactError(
            f"The artifact in {folder} is of kind {manifest.kind!r}, not {kind!r}.",
            f"Name an artifact of kind {kind}.",
        )
    if manifest.entry not in manifest.files:  # else a file that no hash covers would be loaded
        raise ArtifactError(
            f"The manifest in {folder} does not list its entry {manifest.entry!r}.", _EXPORT
        )
    if len(manifest.inputs) != 1 or len(manifest.outputs) != 1:
        raise ArtifactError(
            f"The graph in {folder} has {len(manifest.inputs)} inputs and"
            f" {len(manifest.outputs)} outputs, expected one of each.",
            _EXPORT,
        )
    front_end = manifest.front_end
    declared = (front_end.sample_rate, front_end.n_fft, front_end.hop, front_end.mel_bins)
    expected = (SAMPLE_RATE, N_FFT, HOP, MEL_BINS)
    if declared != expected or front_end.frame_multiple < 1:
        raise ArtifactError(
            f"The artifact in {folder} needs a front end of (rate, window, hop, bins) {declared};"
            f" this runtime's is {expected}.",
            "Use a runtime of the artifact's version.",
        )


def _check_features(features: npt.NDArray[Any], manifest: Manifest) -> None:
    shape = features.shape
    fits = len(shape) == 3 and shape[0] == 1 and shape[2] == manifest.feature_width
    if not fits or shape[1] > manifest.max_tokens or features.dtype != np.float32:
        raise ArtifactError(
            f"The graph returned {features.dtype} {shape}, but its manifest declares float32"
            f" (1, up to {manifest.max_tokens}, {manifest.feature_width}).",
            _EXPORT,
        )

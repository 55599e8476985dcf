"""Runtimes of exported encoders: the `Backend` protocol and its implementations.

To add a backend, write a class with `manifest` and `encode`, and add it to `_BACKENDS`.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from esrt.arrays import Float32Array
from esrt.cores import usable_cores
from esrt.errors import ArtifactError
from esrt.features import HOP, MEL_BINS, N_FFT, SAMPLE_RATE
from esrt.manifest import Manifest, verify_files
from esrt.native_log import discard_native_log

# A phone has about four fast cores; with more threads, the fast cores wait for the slow ones.
DEFAULT_THREADS = min(4, usable_cores())

_EXPORT = "Export the artifact again with this version."
_ORT_FATAL = 4


class Backend(Protocol):
    """A loaded encoder with its adapter."""

    @property
    def manifest(self) -> Manifest:
        """The artifact's description."""
        ...

    def encode(self, mel: Float32Array) -> Float32Array:
        """Features (tokens, width) of a log-mel spectrogram (mel bins, frames), both float32.

        Raises:
            ArtifactError: the graph rejects the input or returns an undeclared shape.
        """
        ...


class OnnxBackend:
    """An ONNX artifact on ONNX Runtime's CPU provider.

    The graph maps one input, float32 (1, mel bins, frames), to one output, float32
    (1, tokens, width); the manifest names them.

    Args:
        folder: the artifact's folder.
        manifest: the artifact's manifest.
        threads: threads inside an operator; operators run one after the other.

    Raises:
        ArtifactError: the graph cannot be loaded or differs from its manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int) -> None:
        import onnxruntime  # only this backend needs it

        self._manifest = manifest
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # The exceptions repeat the log, which would mix with a command's own output.
        options.log_severity_level = _ORT_FATAL
        try:
            self._session: Any = onnxruntime.InferenceSession(
                folder / manifest.entry, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise ArtifactError(
                f"ONNX Runtime cannot load {folder / manifest.entry}: {error}.", _EXPORT
            ) from error
        self._input = manifest.inputs[0].name
        self._output = manifest.outputs[0].name
        inputs = [value.name for value in self._session.get_inputs()]
        outputs = [value.name for value in self._session.get_outputs()]
        if inputs != [self._input] or self._output not in outputs:
            raise ArtifactError(
                f"The graph in {folder} maps {inputs} to {outputs}, but its manifest declares"
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
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise ArtifactError(
                f"ONNX Runtime failed on an input of shape {mel.shape}: {error}.", _EXPORT
            ) from error
        _check_features(features, self._manifest)
        result: Float32Array = features[0]
        return result


class ExecuTorchBackend:
    """An ExecuTorch artifact on ExecuTorch's Python runtime, which takes torch tensors.

    The runtime's kernels are those of the phone.

    Args:
        folder: the artifact's folder.
        manifest: the artifact's manifest.
        threads: threads of the pool that all ExecuTorch backends of a process share. The first
            backend sets them, because a pool in use cannot be replaced.

    Raises:
        ArtifactError: the program cannot be loaded or differs from its manifest, or ExecuTorch or
            torch is not installed.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int) -> None:
        self._manifest = manifest
        path = folder / manifest.entry
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
            with discard_native_log():
                if not _executorch_threads:
                    portable_lib._unsafe_reset_threadpool(threads)
                    _executorch_threads.append(threads)
                # The program owns the method's memory, so it has to be kept.
                self._program: Any = Runtime.get().load_program(path)
                self._method: Any = self._program.load_method("forward")
                metadata = self._method.metadata
                inputs = [
                    metadata.input_tensor_meta(i).sizes() for i in range(metadata.num_inputs())
                ]
        except Exception as error:  # ExecuTorch's errors have no common base class
            raise ArtifactError(f"ExecuTorch cannot load {path}: {error}.", _EXPORT) from error
        declared = (1, manifest.front_end.mel_bins, manifest.front_end.max_frames)
        if [tuple(sizes) for sizes in inputs] != [declared]:
            raise ArtifactError(
                f"The program in {folder} takes {inputs}, but its manifest declares"
                f" (1, {declared[1]}, up to {declared[2]}).",
                _EXPORT,
            )

    @property
    def manifest(self) -> Manifest:
        """The artifact's description."""
        return self._manifest

    def encode(self, mel: Float32Array) -> Float32Array:
        """See :meth:`Backend.encode`."""
        # ExecuTorch may abort the process on a wrong shape, or ignore an incomplete last block.
        bins, frames = mel.shape
        front_end = self._manifest.front_end
        longest, multiple = front_end.max_frames, front_end.frame_multiple
        valid_length = frames % multiple == 0 and 0 < frames <= longest
        if mel.dtype != np.float32 or bins != front_end.mel_bins or not valid_length:
            raise ArtifactError(
                f"ExecuTorch failed on an input: it is {mel.dtype} {mel.shape}, but the program"
                f" takes float32 ({front_end.mel_bins}, up to {longest} in steps of {multiple}).",
                "Cut the speech into shorter segments.",
            )
        try:
            tensor = self._tensor(np.ascontiguousarray(mel[np.newaxis]))
            (output,) = self._method.execute([tensor])
        except Exception as error:  # ExecuTorch's errors have no common base class
            raise ArtifactError(
                f"ExecuTorch failed on an input of shape {mel.shape}: {error}.", _EXPORT
            ) from error
        features = output.numpy()
        _check_features(features, self._manifest)
        result: Float32Array = features[0]
        return result


# Threads of the process's pool; empty until the first backend has set them.
_executorch_threads: list[int] = []


_BACKENDS: dict[str, type[OnnxBackend] | type[ExecuTorchBackend]] = {
    "onnx": OnnxBackend,
    "executorch": ExecuTorchBackend,
}


def load_backend(folder: Path, manifest: Manifest, *, threads: int) -> Backend:
    """Verify an artifact's files and load the encoder with the backend for the artifact's kind.

    Args:
        folder: the artifact's folder.
        manifest: the artifact's manifest.
        threads: threads of the backend.

    Raises:
        ArtifactError: a file is missing, differs from the exported one or cannot be loaded, or
            this runtime does not support the artifact.
    """
    try:
        backend = _BACKENDS[manifest.kind]
    except KeyError:
        raise ArtifactError(
            f"The artifact in {folder} is of kind {manifest.kind!r}, which this runtime does not"
            " run.",
            f"Name one of kind {' or '.join(_BACKENDS)}.",
        ) from None
    _check_manifest(manifest, folder)
    verify_files(folder, manifest)
    return backend(folder, manifest, threads=threads)


def _check_manifest(manifest: Manifest, folder: Path) -> None:
    """Reject a front end or a graph interface that this runtime does not support."""
    if manifest.entry not in manifest.files:  # no SHA-256 would cover the file
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
    declared = (front_end.sample_rate, front_end.n_fft, front_end.hop)
    expected = (SAMPLE_RATE, N_FFT, HOP)
    supported = declared == expected and front_end.mel_bins in MEL_BINS
    if not supported or front_end.frame_multiple < 1:
        raise ArtifactError(
            f"The artifact in {folder} needs a front end of (rate, window, hop) {declared} with"
            f" {front_end.mel_bins} mel bins; this runtime's is {expected} with"
            f" {' or '.join(map(str, MEL_BINS))}.",
            "Use a runtime of the artifact's version.",
        )


def _check_features(features: npt.NDArray[Any], manifest: Manifest) -> None:
    shape = features.shape
    one_utterance = len(shape) == 3 and shape[0] == 1 and shape[2] == manifest.feature_width
    if not one_utterance or shape[1] > manifest.max_tokens or features.dtype != np.float32:
        raise ArtifactError(
            f"The graph returned {features.dtype} {shape}, but its manifest declares float32"
            f" (1, up to {manifest.max_tokens}, {manifest.feature_width}).",
            _EXPORT,
        )

"""Peak memory of one run: ``python -m export.peak_memory KIND FILE FRAMES``.

Prints the bytes by which loading the artifact and running it once raised the process above what
the runtime takes by itself.
"""

import subprocess
import sys
from pathlib import Path

from esrt.errors import ArtifactError
from esrt.manifest import Kind

_STATUS = Path("/proc/self/status")
_MEL_BINS = 128


def peak_bytes(kind: Kind, path: Path, frames: int) -> int | None:
    """Peak memory of loading and running once; ``None`` where the system does not tell.

    Raises:
        ArtifactError: the artifact does not run.
    """
    if not _STATUS.exists() or kind == "coreml":
        return None
    done = subprocess.run(
        [sys.executable, "-m", "export.peak_memory", kind, str(path.resolve()), str(frames)],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise ArtifactError(f"{path} does not run: {why}.", "Export it again.")
    return int(done.stdout.split()[-1])


def _resident(field: str) -> int:
    (line,) = (row for row in _STATUS.read_text().splitlines() if row.startswith(field))
    return 1024 * int(line.split()[1])


def _main(kind: str, path: str, frames: int) -> None:
    import numpy as np

    mel = np.zeros((1, _MEL_BINS, frames), np.float32)
    if kind == "onnx":
        import onnxruntime

        before = _start()
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        session.run(None, {session.get_inputs()[0].name: mel})
    else:
        import torch
        from executorch.runtime import Runtime

        runtime, tensor = Runtime.get(), torch.from_numpy(mel)
        before = _start()
        program = runtime.load_program(path)
        program.load_method("forward").execute([tensor])
    print(_resident("VmHWM:") - before)


def _start() -> int:
    """Forget the peak so far; the resident memory."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS:")


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

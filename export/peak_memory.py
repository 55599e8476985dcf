"""Peak memory of one run of an artifact: ``python -m export.peak_memory FOLDER``.

Prints the bytes by which loading the artifact and running its longest input raised the process's
memory above that of the runtime alone.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

from esrt.bundled import REPOSITORY
from esrt.errors import ArtifactError
from esrt.manifest import read_manifest
from export.backends import get_runner_loader

_PROCESS = Path("/proc/self")


def peak_bytes(folder: Path) -> int | None:
    """Measure the peak in a new process; ``None`` on systems without ``/proc``.

    Raises:
        ArtifactError: the artifact does not run.
    """
    if not (_PROCESS / "status").exists():
        return None
    done = subprocess.run(
        [sys.executable, "-m", "export.peak_memory", str(folder.resolve())],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ArtifactError(
            f"The artifact in {folder} does not run: {reason}.", "Export the artifact again."
        )
    return int(done.stdout.split()[-1])


def _memory(field: str) -> int:
    """Field of the process's status, in bytes."""
    lines = (_PROCESS / "status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return 1024 * int(line.split()[1])


def _main(folder: Path) -> None:
    manifest = read_manifest(folder, verify=False)
    load_runner = get_runner_loader(manifest.kind)
    mel = np.zeros((1, manifest.front_end.mel_bins, manifest.front_end.max_frames), np.float32)
    (_PROCESS / "clear_refs").write_text("5")  # resets the peak
    before = _memory("VmRSS:")
    load_runner(folder / manifest.entry)(mel)
    print(_memory("VmHWM:") - before)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

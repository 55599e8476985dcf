"""A process of an engine does not outlive the process that started it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from esrt.bundled import REPOSITORY

# The child's argument calls the function while it is unpickled, as vLLM's executor does. The child
# prints its process id, then stops: only the kernel can end it.
PARENT = """
import multiprocessing, os, signal
from cloud_vllm.engines.parent_death import end_with_parent

class Argument:
    def __setstate__(self, state):
        {first}
        end_with_parent()

def child(argument):
    print(os.getpid(), flush=True)
    {last}

if __name__ == "__main__":
    argument = Argument()
    argument.state = 1
    multiprocessing.get_context("spawn").Process(target=child, args=[argument]).start()
"""
STOPS = PARENT.format(first="pass", last="os.kill(os.getpid(), signal.SIGSTOP)")
# The parent ends before the child's first lines.
EARLY = PARENT.format(
    first="os.kill(os.getppid(), signal.SIGKILL); import time; time.sleep(0.5)",
    last="import time; time.sleep(60)",
)


def start(folder: Path, script: str) -> subprocess.Popen[str]:
    file = folder / "parent.py"
    file.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, str(file)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # A process started by nohup ignores SIGHUP, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_a_child_ends_with_its_parent(tmp_path: Path, sent: signal.Signals) -> None:
    with start(tmp_path, STOPS) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(sent)
        assert parent.wait(10) == -sent
        gone, _ = psutil.wait_procs([child], timeout=10)
        assert gone or child.status() == psutil.STATUS_ZOMBIE


def test_a_child_ends_after_a_parent_that_ended_first(tmp_path: Path) -> None:
    with start(tmp_path, EARLY) as parent:
        parent.communicate(timeout=20)  # until the child has ended, too
        assert parent.returncode == -signal.SIGKILL


def test_a_process_without_a_parent_is_unchanged() -> None:
    code = "from cloud_vllm.engines.parent_death import end_with_parent as end; end(); print(1)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"

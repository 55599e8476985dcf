"""The end of a child process with its parent, however the parent ends."""

import ctypes
import multiprocessing
import os
import signal
import threading
import time

# Of <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.1


def end_with_parent() -> None:
    """End this process when the process that started it by `multiprocessing` ends.

    Linux kills the process when the thread ends that started it, even if the process hangs. A
    thread does the same if the parent had ended before. A process that `multiprocessing` did not
    start is left as it is.
    """
    # Only its name tells a child while `multiprocessing` still unpickles its arguments.
    if multiprocessing.current_process().name == "MainProcess":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_wait_for_parent, name="parent", daemon=True).start()


def _wait_for_parent() -> None:
    while (parent := multiprocessing.parent_process()) is None:
        time.sleep(_POLL_S)
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)

"""The end of a child process with its parent, however the parent ends."""

import ctypes
import multiprocessing
import os
import signal

# Of <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have Linux kill this process of `multiprocessing` when its parent ends.

    The signal comes when the thread ends that started this process. In a process without a parent
    of `multiprocessing` nothing changes.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # the parent had ended before
        os._exit(1)

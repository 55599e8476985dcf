"""Competitors that work at the same time, in slices: while one runs, the others stand still.

A virtual machine may be twice as fast in one second as in the next. Whoever is measured for seconds
on end is measured with the weather; in slices of half a second all have the same.
"""

import os
import signal
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import psutil

SLICE_S = 0.5
_LOOK_S = 0.005


@dataclass
class Clock:
    """Counts the seconds in which a competitor ran.

    Attributes:
        began: when each of its slices began, on `time.perf_counter`.
        ended: when each ended; the last may be open.
    """

    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    def at(self, moment: float) -> float:
        """The seconds that it had run by a moment of `time.perf_counter`."""
        number = bisect_right(self.began, moment)
        total = 0.0
        for begin, end in zip(self.began[:number], [*self.ended, moment][:number], strict=True):
            total += min(end, moment) - begin
        return total


@dataclass(frozen=True)
class Competitor:
    """Who takes part.

    Attributes:
        process: its process, stopped and continued with the descendants that it has at the start.
        work: what it is to do, seen from this process; called in a thread.
    """

    process: int
    work: Callable[[], Any]


def compete(competitors: Mapping[str, Competitor]) -> dict[str, tuple[Any, Clock]]:
    """What each one's work gave, and its clock.

    Each begins its work with its first slice, in the order in which they are given. Whatever the
    works raise is raised.
    """
    families = {name: _family(one.process) for name, one in competitors.items()}
    clocks = {name: Clock() for name in competitors}
    works: dict[str, Future[Any]] = {}
    with ThreadPoolExecutor(len(competitors)) as pool:
        try:
            for family in families.values():
                _signal(family, signal.SIGSTOP)
            for name, one in cycle(competitors.items()):
                if len(works) == len(competitors) and all(work.done() for work in works.values()):
                    break
                if name not in works:
                    works[name] = pool.submit(one.work)
                if not works[name].done():
                    _run(families[name], works[name], clocks[name])
        finally:
            for family in families.values():
                _signal(family, signal.SIGCONT)
    return {name: (works[name].result(), clocks[name]) for name in competitors}


def _run(family: list[int], work: Future[Any], clock: Clock) -> None:
    clock.began.append(time.perf_counter())
    _signal(family, signal.SIGCONT)
    while time.perf_counter() < clock.began[-1] + SLICE_S and not work.done():
        time.sleep(_LOOK_S)
    _signal(family, signal.SIGSTOP)
    clock.ended.append(time.perf_counter())


def _family(process: int) -> list[int]:
    root = psutil.Process(process)
    return [process, *(child.pid for child in root.children(recursive=True))]


def _signal(family: list[int], number: int) -> None:
    for process in family:
        with suppress(ProcessLookupError):
            os.kill(process, number)

"""What every driver shares: the clock that starts with the process, the marks, and the one line of JSON.

Runs under each library's own Python, so it uses the standard library alone.

A driver makes one run of one case and calls `mark` at every iteration's end (and once just before
training starts). From the marks come all the figures:

  steps_per_second            from the first iteration's end to the last's: compilation and imports left out
  steps_per_cpu_second        the same stretch by the processor time of this process: on a machine with other
                              work it says more than the clock on the wall (None: several processes)
  steps_per_second_with_start from the start of the process to the last mark
  seconds_to_target, env_steps_to_target   the first mark where the last 100 training episodes' mean >= target
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from importlib import metadata
from typing import Any


class Run:
    """One run of one case. `case` is the mapping that run.py sends (cases.py says what is in it)."""

    def __init__(self) -> None:
        self.case: dict[str, Any] = json.loads(sys.argv[1])
        self.packages: list[str] = json.loads(sys.argv[2])
        self.started = float(os.environ["BENCH_STARTED"])  # time.time() just before the process was made
        self.marks: list[tuple[float, int, float | None]] = []  # (seconds, env steps, mean return of 100)
        self.cpu: list[float] = []  # this process's processor seconds at each mark, all threads

    def mark(self, env_steps: int, mean_return: float | None = None, seconds: float | None = None) -> bool:
        """Note the end of an iteration; true if the run may stop now. What ends within the case's warm-up
        (before learning goes at full speed) is not noted, so that the first iteration is all of it."""
        if 0 < env_steps < self.case.get("warmup", 0):
            return False
        now = time.time() - self.started if seconds is None else seconds
        self.marks.append((now, int(env_steps), mean_return))
        self.cpu.append(time.process_time())
        target, limit = self.case.get("target"), self.case.get("seconds")
        if target is not None and mean_return is not None and mean_return >= target:
            return True
        if limit is not None and len(self.marks) > 2 and now - self.marks[1][0] >= limit:
            return True
        return env_steps >= self.case["steps"] or now >= self.case["wall"]

    def report(self, settings: dict[str, Any], **more: Any) -> None:
        """Print the result as the last line of standard output."""
        (end, steps, _), first = self.marks[-1], self.marks[min(1, len(self.marks) - 2)]
        span, cpu = end - first[0], self.cpu[-1] - self.cpu[min(1, len(self.cpu) - 2)]
        reached = next((m for m in self.marks if self._hit(m[2])), None)
        result = {
            "env_steps": steps,
            "seconds": end,
            "first_iteration_seconds": self.marks[1][0],
            "steps_per_second": (steps - first[1]) / span if span > 0 else None,
            "steps_per_cpu_second": (steps - first[1]) / cpu if cpu > 0 else None,
            "steps_per_second_with_start": steps / end,
            "seconds_to_target": reached[0] if reached else None,
            "env_steps_to_target": reached[1] if reached else None,
            "last_mean_return": self.marks[-1][2],
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "versions": {"python": sys.version.split()[0], **{p: version(p) for p in self.packages}},
            "settings": settings,
            **more,
        }
        print("BENCH " + json.dumps(result), flush=True)

    def _hit(self, mean_return: float | None) -> bool:
        target = self.case.get("target")
        return target is not None and mean_return is not None and mean_return >= target


def version(package: str) -> str:
    return metadata.version(package)


def mean_of_last(returns: Any, count: int = 100) -> float | None:
    """The mean of the last `count` episode returns, None until there are as many."""
    last = list(returns)[-count:]
    return sum(last) / count if len(last) == count else None

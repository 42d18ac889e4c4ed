"""One of the cases of test_kill_resume in a process of its own, until it is killed.

The processes are forked from a server that has imported what they need: half of what starting one costs.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from chaos_cases import CASES, STEPS, make
from compiling import follow

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["shoal.trainer", "shoal.evaluation", "optax", "gymnasium"])


def _train(name: str, run_dir: str, environment: dict[str, str], told: Connection) -> None:
    os.environ.update(environment)
    follow()
    with make(CASES[name], run_dir) as trainer:
        trainer.fit(STEPS, on_result=lambda result: told.send(result["iteration"]))


def start(name: str, run_dir: str) -> tuple[BaseProcess, Connection]:
    """The process, and what tells the number of each iteration that it has done."""
    here, there = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_train, args=(name, run_dir, dict(os.environ), there))
    process.start()
    there.close()
    return process, here

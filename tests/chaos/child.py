"""Trains one of the cases of test_kill_resume until it is killed. Usage: child.py CASE RUN_DIR"""

from __future__ import annotations

import sys

from chaos_cases import CASES, STEPS, make

if __name__ == "__main__":
    name, run_dir = sys.argv[1:]
    with make(CASES[name], run_dir) as trainer:
        trainer.fit(STEPS, on_result=lambda result: print(result["iteration"], flush=True))

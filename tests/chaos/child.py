"""Trains one of the cases of test_kill_resume until it is killed. Usage: child.py CASE RUN_DIR"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos_cases import CASES, STEPS, make
from compiling import follow

if __name__ == "__main__":
    follow()
    name, run_dir = sys.argv[1:]
    with make(CASES[name], run_dir) as trainer:
        trainer.fit(STEPS, on_result=lambda result: print(result["iteration"], flush=True))

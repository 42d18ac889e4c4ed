"""Traces: fingerprints of short runs, to prove that a change which should change nothing changed nothing.

    python tests/traces.py record before.json      on the old code
    python tests/traces.py compare before.json     on the new code; exit code 1 where a run differs

The runs are those that the recovery tests kill: every algorithm, both executors, every way of saving. A
record is for one kind of machine and one set of versions, so it is not kept in the repository.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "chaos"))

from chaos_cases import CASES, STEPS, make


def trace(name: str) -> dict[str, object]:
    """The last row and the parameters of one run."""
    with make(CASES[name], None) as trainer:
        result = trainer.fit(STEPS)
        row = {key: value for key, value in result.items() if not key.startswith("timing/")}
        return {"fingerprint": trainer.fingerprint(), "row": json.loads(json.dumps(row))}


def main(verb: str, path: str) -> int:
    place = Path(path)
    if verb == "record":
        place.write_text(json.dumps({name: trace(name) for name in CASES}, indent=1))
        return 0
    before = json.loads(place.read_text())
    changed = [name for name in before if name in CASES and trace(name) != before[name]]
    for name in before:
        print(f"{name}: {'changed' if name in changed else 'gone' if name not in CASES else 'the same'}")
    return bool(changed)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("record", "compare"):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))

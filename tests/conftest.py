"""What all tests share: JAX set up as a run sets it up, and a compilation cache of the tests' own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Before JAX starts, and inherited by the processes that tests start.
os.environ.setdefault("SHOAL_CACHE", str(Path(tempfile.gettempdir()) / f"shoal-test-cache-{os.getuid()}"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from shoal.runtime import configure

configure(threads=1)

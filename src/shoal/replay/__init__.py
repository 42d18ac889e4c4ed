"""Replay: past experience, drawn again and again, in host memory or on the device.

One set of pure functions over a `Memory` of arrays: NumPy arrays are written in place, JAX arrays are traced
(donate them). Both give the same bits.
"""

from shoal.replay.layout import Layout
from shoal.replay.memory import Memory, empty, insert, ready, stored, units
from shoal.replay.ratio import Credit, begin, due, most_updates
from shoal.replay.sampling import draw, draw_by, host_words, reprioritize
from shoal.replay.saved import load, save

__all__ = [
    "Credit",
    "Layout",
    "Memory",
    "begin",
    "draw",
    "draw_by",
    "due",
    "empty",
    "host_words",
    "insert",
    "load",
    "most_updates",
    "ready",
    "reprioritize",
    "save",
    "stored",
    "units",
]

"""SBX's algorithms (SB3 in JAX) on one case: SB3's driver with the other import; see driver.py."""

from driver import Run
from peer_sb3 import train

if __name__ == "__main__":
    train(Run(), "sbx")

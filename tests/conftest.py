"""Shared settings: one thread, so that tests measure logic and run beside each other."""

import os

# Before torch is imported: worker processes inherit it, and two busy thread pools on two cores stall each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

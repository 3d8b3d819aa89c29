"""Settings of every test process and of the programs that tests start."""

import os
import signal

# Before torch is imported: worker processes inherit it, and two busy thread pools on two cores stall each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that runs the tests in the background has Ctrl-C ignored, and programs started from here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

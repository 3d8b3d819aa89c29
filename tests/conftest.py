"""Settings of every test process and of the programs that tests start."""

import os
import signal

# Before torch is imported: worker processes inherit it, and two busy thread pools on two cores stall each other. Set
# whatever the shell says: with OMP_NUM_THREADS=2 the suite takes four times as long.
os.environ["OMP_NUM_THREADS"] = "1"
# What tests compile for the CPU is a few lines: finding out about vector instructions, compiling headers ahead and
# starting processes that compile take longer than the rest.
for setting, value in {"VEC_ISA_OK": "0", "CPP_CACHE_PRECOMPILE_HEADERS": "0", "COMPILE_THREADS": "1"}.items():
    os.environ.setdefault(f"TORCHINDUCTOR_{setting}", value)
# A shell that runs the tests in the background has Ctrl-C ignored, and programs started from here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

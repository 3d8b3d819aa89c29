import sys
from pathlib import Path

# The helpers beside the tests are imported by name, and pytest's importlib mode adds no folder for them.
sys.path.insert(0, str(Path(__file__).parent))

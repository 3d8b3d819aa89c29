import sys
from pathlib import Path

# Spawned ranks must import the same helpers by name, and pytest's importlib mode adds no folder for them.
sys.path.insert(0, str(Path(__file__).parent))

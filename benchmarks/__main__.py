"""``python -m benchmarks COMMAND``, in the repository's root."""

import sys
from importlib import import_module

import fire

COMMANDS = ("compare", "gpu", "scaling", "speed", "table")

if __name__ == "__main__":
    wanted = [name for name in COMMANDS if name in sys.argv[1:2]] or COMMANDS  # of which one is imported in a moment
    fire.Fire({name: import_module(f"benchmarks.{name}").main for name in wanted}, name="benchmarks")

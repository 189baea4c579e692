"""``python -m benchmarks COMMAND``, in the repository's root."""

import sys
from importlib import import_module

import fire

COMMANDS = ("compare", "dice", "gpu", "scaling", "speed", "table")

ROOMS = {"dice": "dice.command"}

if __name__ == "__main__":
    wanted = [name for name in COMMANDS if name in sys.argv[1:2]] or COMMANDS  # of which one is imported in a moment
    modules = {name: import_module(f"benchmarks.{ROOMS.get(name, name)}") for name in wanted}
    fire.Fire({name: module.main for name, module in modules.items()}, name="benchmarks")

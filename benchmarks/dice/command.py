"""``python -m benchmarks dice prepare | run | costs | table | figures | overlays``."""

from benchmarks.dice import costs, datasets, figures, overlays, protocol, tables

main = {
    "prepare": datasets.prepare,
    "run": protocol.main,
    "costs": costs.main,
    "table": tables.main,
    "figures": figures.main,
    "overlays": overlays.main,
}

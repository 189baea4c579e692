"""``python -m benchmarks dice prepare | run | costs | table | figures``."""

from benchmarks.dice import costs, datasets, figures, protocol, tables

main = {
    "prepare": datasets.prepare,
    "run": protocol.main,
    "costs": costs.main,
    "table": tables.main,
    "figures": figures.main,
}

"""How many processes load the batches of a training."""

import multiprocessing
import os

import torch

_MOST = 4  # feed a network that takes 7 ms a batch, with the bundles' transforms


def loader_workers(device: torch.device | str) -> int:
    """Number of a data loader's worker processes with which it keeps up with the network.

    On a CPU it is 0, for the network itself keeps the cores busy; so it is where new processes are started from
    scratch (Windows, macOS), which takes longer than they save in an epoch of seconds. Random transforms draw other
    numbers with another number of workers.

    Args:
        device: that the network runs on.

    Example::

        >>> loader_workers("cpu")
        0
    """
    if torch.device(device).type == "cpu" or multiprocessing.get_all_start_methods()[0] != "fork":
        return 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of a job on several GPUs, on this machine
    return min(_MOST, len(os.sched_getaffinity(0)) // (2 * processes))

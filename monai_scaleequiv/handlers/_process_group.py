"""The end of a process's part in a distributed job."""

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def leave_process_group(network: DistributedDataParallel) -> None:
    """Destroys the process group and with it its threads, although the network that was trained in it lives on.

    ``torch.distributed.destroy_process_group`` leaves Gloo's threads while a network refers to the group, as a bundle's
    parser makes it do; one that still works as the interpreter ends aborts the process (issue 190489 of PyTorch).

    Args:
        network: the wrapper, which cannot run afterwards; its ``module`` can.

    Raises:
        TypeError: when the network is not a ``DistributedDataParallel``.

    Example::

        >>> leave_process_group(torch.nn.Linear(1, 1))
        Traceback (most recent call last):
        TypeError: network: expected a DistributedDataParallel, got Linear; without one, ...
    """
    if not isinstance(network, DistributedDataParallel):
        raise TypeError(
            f"network: expected a DistributedDataParallel, got {type(network).__name__}; "
            "without one, torch.distributed.destroy_process_group() is enough."
        )
    if not dist.is_initialized():
        return
    # The last reference has to be Python's, which waits for the threads without holding the lock that they need to end.
    for name in ("reducer", "logger", "process_group"):
        vars(network).pop(name, None)
    dist.destroy_process_group()

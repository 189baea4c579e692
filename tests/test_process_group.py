"""A process that leaves a distributed job takes the job's threads with it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monai_scaleequiv.handlers import leave_process_group

SCRIPT = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from monai_scaleequiv.handlers import leave_process_group

rank, store = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
network = torch.nn.parallel.DistributedDataParallel(torch.nn.Conv2d(1, 1, 1))
for _ in range(2):
    network(torch.ones(1, 1, 2, 2)).sum().backward()
dist.all_gather([torch.zeros(3) for _ in range(2)], torch.ones(3))
leave_process_group(network)
leave_process_group(network)  # nothing is left to leave
assert not dist.is_initialized()
assert network.module(torch.ones(1, 1, 2, 2)).isfinite().all()
print(*(task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")))
"""


@pytest.mark.slow  # test_bundles.py::test_training_in_two_processes looks for the threads as well
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc: Python has no list of Gloo's threads")
def test_leaving_ends_all_threads(tmp_path):
    jobs = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        names = [job.communicate(timeout=120)[0] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [0, 0]
    assert not any(b"gloo" in line for line in names)


def test_network_that_is_in_no_group():
    with pytest.raises(TypeError, match=r"network: expected a DistributedDataParallel, got Conv3d"):
        leave_process_group(torch.nn.Conv3d(1, 1, 1))

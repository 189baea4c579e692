"""Time of the forms of a steerable convolution, beside torch's own gradients and the form that the package chooses.

    python benchmarks/conv_forms.py --output=benchmarks/results/conv_forms.json

One row for each kind of layer of the networks in the README: medians of alternating runs, milliseconds, forward and
forward with backward, at four scales. ``plain`` is torch's grouped convolution, as the network is scripted.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin while they wait disturb others

import fire
import torch

from monai_scaleequiv import ScaleFilters, ScaleGroupConv
from monai_scaleequiv.layers import _steerable_op as operator
from monai_scaleequiv.layers._conv_form import ConvForm, choose_form

# batch, channels in and out, edge of the volume, interacting scales, order of the filters
CASES = (
    (1, 4, 4, 47, 1, 2), (1, 8, 4, 47, 1, 2), (1, 4, 8, 24, 1, 2), (1, 8, 8, 24, 1, 2), (1, 16, 4, 24, 1, 2),
    (1, 16, 16, 12, 1, 2), (1, 32, 32, 12, 1, 2), (1, 48, 8, 12, 1, 2), (1, 4, 4, 47, 3, 2), (1, 8, 4, 47, 3, 2),
    (1, 8, 8, 24, 3, 2), (1, 32, 32, 12, 3, 2), (2, 16, 16, 24, 1, 3), (2, 32, 16, 24, 1, 3), (2, 64, 64, 12, 1, 3),
)  # fmt: skip
FORMS = {
    "blocks 1": ConvForm((1, 1, 1)), "blocks 2": ConvForm((1, 2, 1)), "blocks 4": ConvForm((2, 2, 1)),
    "blocks 8": ConvForm((2, 2, 2)), "dense": ConvForm((1, 1, 1), is_dense=True),
    "separable": ConvForm((1, 1, 1), is_separable=True),
}  # fmt: skip


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measured(case: tuple[int, ...], rounds: int) -> dict:
    """One row: milliseconds of each form, and the name of the chosen one."""
    batch, inputs, outputs, edge, scale_size, max_order = case
    layer = ScaleGroupConv(3, inputs, outputs, ScaleFilters(max_order=max_order), scale_size)
    x = torch.randn(batch, 4, inputs, edge, edge, edge, requires_grad=True)
    grad = torch.randn(batch, 4, outputs, edge, edge, edge)
    chosen: list[ConvForm] = []

    def step(forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        torch.autograd.grad(forward(x), [x, layer.weight, layer.bias], grad)

    with patch.object(operator, "choose_form", lambda *args: chosen.append(choose_form(*args)) or chosen[-1]):
        layer(x)
    forms = FORMS if scale_size > 1 else {k: v for k, v in FORMS.items() if k != "dense"}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ("plain", *forms)}
    for _ in range(rounds + 1):
        for name in runs:
            forward = layer if name in FORMS else lambda x: layer._convolve(layer._gather_scales(x), 4)
            with patch.object(operator, "choose_form", lambda *_, name=name: FORMS.get(name)):
                with torch.no_grad():
                    alone = seconds(lambda forward=forward: forward(x))
                runs[name].append((alone, seconds(lambda forward=forward: step(forward))))
    keys = ("batch", "inputs", "outputs", "edge", "scale_size", "max_order")
    times = {
        name: [round(statistics.median(column) * 1e3, 2) for column in zip(*pairs[1:], strict=True)]
        for name, pairs in runs.items()
    }
    name = next(name for name, form in FORMS.items() if form == chosen[0])
    return {**dict(zip(keys, case, strict=True)), "chosen": name, "forward_and_step_ms": times}


def main(output: str, rounds: int = 5, threads: int = 2) -> None:
    torch.set_num_threads(threads)
    rows = []
    for case in CASES:
        rows.append({**measured(case, rounds), "load": os.getloadavg()[0]})
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
        facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": threads}
        Path(output).write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)

"""What a GPU spends a step on, and what CUDA graphs capture."""

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import STEP, Side, difference, gain, in_turns, rounded, seconds

NO_GRAPHS = {"unit": "s", "skipped": "CUDA graphs need a GPU"}
SHOWN = 25  # kernels


def kernels(side: Side, steps: int = 3) -> dict[str, Any]:
    """The kernels (on the CPU: operators) that take longest in a step, with milliseconds and calls per step."""
    side.half, device = True, side.x.device
    for _ in range(3):
        side.run(STEP)
    wall = seconds(lambda: side.run(STEP), device)
    on_gpu = device.type == "cuda"
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if on_gpu else [])]) as profiler:
        for _ in range(steps):
            side.run(STEP)
        if on_gpu:
            torch.cuda.synchronize()
    rows = []
    for event in profiler.key_averages():
        if (event.device_type == torch.autograd.DeviceType.CPU) != on_gpu:
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total  # microseconds
            rows.append({"kernel": event.key[:160], "ms": spent / steps / 1000, "calls": event.count / steps})
    busy, calls = (sum(row[key] for row in rows) for key in ("ms", "calls"))
    top = sorted(rows, key=lambda row: -row["ms"])[:SHOWN]
    named = [{**row, "ms": rounded(row["ms"]), "share": rounded(row["ms"] / busy)} for row in top]
    return {"wall_ms": rounded(wall * 1000), "busy_ms": rounded(busy), "calls": rounded(calls), "kernels": named}


def captured_forward(side: Side) -> dict[str, Any]:
    """Replayed beside eager forward pass in evaluation; ``outputs`` is their difference on an image not captured."""
    if side.x.device.type != "cuda":
        return NO_GRAPHS
    net = side.net.eval()
    with torch.no_grad():
        graph, y = _captured(lambda: net(side.x))
        side.x.copy_(torch.randn_like(side.x))
        graph.replay()
        found, expected = y.clone(), net(side.x)
        row = _beside_eager(graph, lambda: net(side.x), side.x.device)
    return {**row, "outputs": difference(found, expected)}


def captured_step(side: Side, rate: float = 1e-3) -> dict[str, Any]:
    """Replayed beside eager training step with SGD; ``weights`` is the difference after three of each."""
    if side.x.device.type != "cuda":
        return NO_GRAPHS
    net = side.net.train()
    step = _training_step(net, side.x, rate)
    graph, _ = _captured(step)  # which changes the weights only while it warms up
    twin = copy.deepcopy(net)
    eager = _training_step(twin, side.x, rate)
    for _ in range(3):
        graph.replay()
        eager()
    weights = [nn.utils.parameters_to_vector(n.parameters()) for n in (net, twin)]
    return {**_beside_eager(graph, eager, side.x.device), "weights": difference(*weights)}


def _training_step(net: nn.Module, x: torch.Tensor, rate: float) -> Callable[[], None]:
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        net(x).square().mean().backward()
        optimizer.step()

    return step


def _captured(run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Graph and result of a call, after three on another stream, as torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()
    return graph, y


def _beside_eager(graph: torch.cuda.CUDAGraph, eager: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    taken = in_turns({"ours": graph.replay, "baseline": eager}, device, budget=0.5)
    row = {name: rounded(statistics.median(values)) for name, values in taken.items()}
    return {"unit": "s", **row, "gain": gain(row)}

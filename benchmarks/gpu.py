"""Images a second and model FLOP utilisation on a GPU, from a bare checkout: `python -m benchmarks gpu`.

Needs PyTorch with CUDA and what raygrid's core imports (numpy, pydantic, pyyaml, safetensors, obstore, psutil), no Ray
and no MLflow. Input is synthetic uint8, already on the device: what is measured is training, not reading.

caffenet   CaffeNet at 227 pixels: raygrid's own step (uint8 in, normalisation, dropout from the stream), one cell and a
           cohort, fp32 and bf16, and captured in a CUDA graph; beside a plain loop with AMP and torch.compile
small      a cohort of the default small network at 32 pixels, beside its cells one at a time
equality   weights after some steps in a cohort against alone: the largest difference

MFU is FLOPs of the model (raygrid.cost, frozen layers forward only, 2 a multiply-add) over the vendor's dense peak.
Without a GPU it says so and exits with 2. `--device cpu --quick` runs the same code at toy size.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

PEAKS = {
    "H100": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H200": (989.0, 67.0),
    "H200 NVL": (835.0, 60.0),
    "A100": (312.0, 19.5),
    "L4": (121.0, 30.0),
    "A10G": (70.0, 31.0),
}
"""dense bf16 and fp32 TFLOP/s by a part of the GPU's name (fp32 without TF32)"""
GOAL_MFU, GOAL_COHORT = 0.36, 3.0


def cells(network: str, size: int, batch: int, classes: int, half: bool, treatments: str, layers: str) -> list[Any]:
    """Second-phase cells of one stream, of a data set that is not there."""
    from raygrid.cell import DatasetFacts
    from raygrid.plan import plan
    from raygrid.study import Study

    facts = DatasetFacts(
        name="synthetic",
        sha256="0" * 64,
        classes=tuple(f"c{i}" for i in range(classes)),
        groups=(None,) * classes,
        train=(1000,) * classes,
        test=(10,) * classes,
        image_size=size,
    )
    text = f"""
name: gpu
dataset: synthetic
network: {network}
splits: [{{kind: random, seed: 0}}]
targets: [B]
treatments: {treatments}
layers: {layers}
recipe:
  iterations: 1000
  batch_size: {batch}
  augmentation: {{padding: 0}}
  numerics: {{autocast: {"bfloat16" if half else "none"}}}
"""
    planned = plan(Study.parse(text), facts)
    found = [cell for cell in planned.cells if cell.phase == "retrain"]
    return [cell for cell in found if cell.stream == found[0].stream]


class Rig:
    """Members on a device with synthetic batches, stepped as the training loop steps them."""

    def __init__(self, chosen: Sequence[Any], device: Any, batches: int = 4):
        import torch

        from raygrid import train
        from raygrid.member import Member, Trunk
        from raygrid.optimize import Optimizer
        from raygrid.transplant import assemble

        self.torch, self.device, self.cells = torch, device, list(chosen)
        recipe, size = chosen[0].recipe, chosen[0].image_size
        draw = np.random.default_rng(0)
        self.inputs = [self._batch(draw, recipe.batch_size, size, chosen[0].outputs) for _ in range(batches)]
        self.loop = train._Loop(train.Bench(store=None, facts=None, device=device), None)  # type: ignore[arg-type]
        self.loop._fail = _raise  # type: ignore[method-assign]
        self.members = []
        trunks: dict[str, Trunk] = {}
        bases: dict[str, Any] = {}
        for cell in chosen:
            base = None
            if cell.base is not None:
                if cell.base.address not in bases:
                    bases[cell.base.address] = assemble(cell.base, None, _statistics).state_dict()
                base = bases[cell.base.address]
            network = assemble(cell, base, _statistics).to(device)
            trunk = None
            if cell.frozen:
                assert cell.base is not None
                trunk = trunks.setdefault(cell.base.address, Trunk(network.input))
                network.input = trunk.input
                for number in range(1, cell.frozen + 1):
                    network.stages[str(number)] = trunk.stages.setdefault(number, network.stage(number))
            learning = [p for p in network.parameters() if p.requires_grad]
            self.members.append(
                Member(
                    cell,
                    network,
                    trunk,
                    Optimizer(learning, recipe),
                    1000,
                    1000,
                    torch.zeros(1000, device=device),
                    None,
                )
            )

    def _batch(self, draw: np.random.Generator, batch: int, size: int, outputs: int) -> tuple[Any, ...]:
        images = draw.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        labels = draw.integers(0, outputs, batch)
        places = np.zeros((batch, 2), dtype=np.int64), np.zeros(batch, dtype=bool)
        return tuple(self.torch.from_numpy(a).to(self.device) for a in (images, labels, *places))

    def step(self, number: int) -> None:
        """One step of every member."""
        from raygrid.data.stream import Noise

        for member in self.members:
            member.step = number % member.total
        self.loop._step(self.members, self.inputs[number % len(self.inputs)], Noise(("gpu", 0, "retrain"), number))  # type: ignore[arg-type]

    def graph(self) -> Callable[[int], None]:
        """All members' steps in one CUDA graph: inputs and dropout masks are copied in, then it is replayed."""
        from raygrid.data.stream import Noise

        torch = self.torch
        static = tuple(t.clone() for t in self.inputs[0])
        noise = Noise(("gpu", 0, "retrain"), 0)

        def body() -> None:
            for member in self.members:
                member.step = 0
            self.loop._step(self.members, static, noise)  # type: ignore[arg-type]

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                body()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            body()

        def replay(number: int) -> None:
            fresh = Noise(noise.names, number)
            for one, other in zip(static, self.inputs[number % len(self.inputs)], strict=True):
                one.copy_(other)
            for key, mask in noise.masks.items():
                layer, shape, rate, *_ = cast(tuple[int, tuple[int, ...], float], key)
                keep = torch.from_numpy(fresh.uniform(layer, tuple(shape)) >= rate).pin_memory()
                mask.copy_(keep.to(mask.device, non_blocking=True).to(mask.dtype) / (1 - rate))
            captured.replay()

        return replay


def _raise(cell: Any, why: str) -> None:
    raise RuntimeError(why)


def _in_turn(chosen: Sequence[Any], device: Any, make: Callable[..., Callable[[int], None]]) -> Callable[[int], None]:
    """Each cell alone, one after the other: what a cohort is compared with."""
    steps = [make([cell], device) for cell in chosen]

    def step(number: int) -> None:
        for one in steps:
            one(number)

    return step


def _eager(chosen: Sequence[Any], device: Any) -> Callable[[int], None]:
    return Rig(chosen, device).step


def _graph(chosen: Sequence[Any], device: Any) -> Callable[[int], None]:
    return Rig(chosen, device).graph()


def _statistics() -> tuple[np.ndarray, np.ndarray]:
    return np.full(3, 127.5), np.full(3, 64.0)


def peer(cell: Any, device: Any, batches: Sequence[tuple[Any, ...]], compiled: bool) -> Callable[[int], None]:
    """A plain loop: uint8 to the device, AMP, fused SGD, torch.compile."""
    import torch
    from torch import nn
    from torch.nn import functional

    from raygrid.transplant import assemble

    staged = assemble(cell.base or cell, None, _statistics).to(device)
    half = cell.recipe.numerics.autocast == "bfloat16"

    class Plain(nn.Module):
        """The same layers, with dropout of torch's own."""

        def __init__(self) -> None:
            super().__init__()
            self.stages = staged.stages

        def forward(self, x: Any) -> Any:
            for module in self.stages.values():
                if module.stage.dropout:
                    x = functional.dropout(x, module.stage.dropout, self.training)
                x = module(x, None)
            return x

    net: Any = Plain().train()
    if compiled:
        net = torch.compile(net)
    sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, fused=device.type == "cuda")
    mean, std = staged.input.mean, staged.input.std

    def step(number: int) -> None:
        images, labels, *_ = batches[number % len(batches)]
        x = ((images.float() - mean) / std).permute(0, 3, 1, 2)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = functional.cross_entropy(net(x).float(), labels)
        sgd.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        sgd.step()

    return step


# --- measuring -------------------------------------------------------------------------------------------------------


def seconds_a_step(step: Callable[[int], None], device: Any, steps: int, turns: int) -> float:
    """Median over turns, after a warm-up."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for number in range(max(3, steps // 4)):
        step(number)
    wait()
    found = []
    for _ in range(turns):
        begun = time.perf_counter()
        for number in range(steps):
            step(number)
        wait()
        found.append((time.perf_counter() - begun) / steps)
    return statistics.median(found)


def flops(chosen: Sequence[Any]) -> float:
    """Of one image through all cells of a cohort, forward and backward, each trunk once."""
    from raygrid.cost import stage_costs

    total, longest = 0.0, 0.0
    for cell in chosen:
        stages = stage_costs(cell.network, cell.outputs, cell.recipe.augmentation.crop or cell.image_size)
        trained = stages[cell.frozen :]
        total += sum(s.forward + s.weight_gradient for s in trained) + sum(s.input_gradient for s in trained[1:])
        longest = max(longest, sum(s.forward for s in stages[: cell.frozen]))
    return total + longest


def peak(name: str, half: bool) -> float | None:
    """FLOP/s of a GPU by its name."""
    from raygrid.cost import kind_of

    kind, words = kind_of(name), re.split(r"[ -]", name)
    form = next((f"{kind} {word}" for word in ("PCIe", "NVL") if f"{kind} {word}" in PEAKS and word in words), kind)
    both = PEAKS.get((form or "").partition("-")[0])
    return both[0 if half else 1] * 1e12 if both else None


def row(what: str, chosen: Sequence[Any], seconds: float, name: str) -> dict[str, Any]:
    """Figures of one way of training."""
    half = chosen[0].recipe.numerics.autocast == "bfloat16"
    batch = chosen[0].recipe.batch_size
    most = peak(name, half)
    done = batch * flops(chosen) / seconds
    return {
        "what": what,
        "cells": len(chosen),
        "precision": "bf16" if half else "fp32",
        "ms_a_step": round(seconds * 1e3, 3),
        "images_per_s": round(batch * len(chosen) / seconds, 1),
        "tflops": round(done / 1e12, 3),
        "mfu": round(done / most, 4) if most else None,
    }


def equality(chosen: Sequence[Any], device: Any, steps: int) -> dict[str, float]:
    """The largest difference of a weight after some steps, cohort against alone."""
    together = Rig(chosen, device)
    for number in range(steps):
        together.step(number)
    worst = 0.0
    for index, cell in enumerate(chosen):
        alone = Rig([cell], device)
        for number in range(steps):
            alone.step(number)
        pairs = zip(together.members[index].network.parameters(), alone.members[0].network.parameters(), strict=True)
        worst = max([worst, *(float((a - b).detach().abs().max()) for a, b in pairs)])
    return {"steps": steps, "largest_difference": worst}


def main() -> dict[str, Any] | int:
    """Run the benchmark; its figures, or 2 where there is no GPU."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="toy size: shows only that the benchmark works")
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument("--steps", type=int, help="of a turn (default 30)")
    p.add_argument("--no-compile", action="store_true", help="the peer without torch.compile")
    options = p.parse_args()
    try:
        import torch

        import raygrid.train  # noqa: F401
    except ImportError as error:
        print(
            f"benchmarks gpu: {error}. Needs: torch numpy pydantic pyyaml safetensors obstore psutil", file=sys.stderr
        )
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks gpu: this machine has no GPU that PyTorch can use (--device cpu --quick tries the code)")
        return 2
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)
    device = torch.device(options.device)
    figures = measured(device, options.steps or (2 if options.quick else 30), options.quick, not options.no_compile)
    print(json.dumps(figures))
    return figures


def measured(device: Any, steps: int, quick: bool, compiled: bool) -> dict[str, Any]:
    """All figures."""
    import torch

    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(0) if cuda else "CPU"
    big = ("{name: caffenet, width: 0.05}", 67, 4, 20) if quick else ("caffenet", 227, 256, 1000)
    little = ("{name: small, width: 0.1}", 16, 8, 20) if quick else ("small", 32, 64, 100)
    turns = 1 if quick else 5
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}

    def measure(what: str, chosen: Sequence[Any], make: Callable[[], Callable[[int], None]]) -> None:
        try:
            rows.append(row(what, chosen, seconds_a_step(make(), device, steps, turns), name))
        except Exception as error:  # one way that fails must not lose the others' figures
            failed[what] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return
        finally:
            if cuda:
                torch.cuda.empty_cache()
        last = rows[-1]
        share = "" if last["mfu"] is None else f", {last['mfu']:.1%} of peak"
        print(f"  {what:<52} {last['images_per_s']:>12,.0f} images/s {last['tflops']:9.2f} TFLOP/s{share}")

    print(f"{name}, torch {torch.__version__}; synthetic images, on the device from the start")
    for half in (False, True):
        precision = "bf16" if half else "fp32"
        one = cells(*big, half, "[scratch]", "[1]")
        many = cells(*big, half, "[transfer, transfer+]", "[7]" if quick else "[1, 3, 5, 7]")
        batches = Rig(one, device).inputs
        plain = f"caffenet {precision}, plain loop"
        alone, side_by_side = f"caffenet {precision}, one cell", f"caffenet {precision}, cohort of {len(many)}"
        measure(plain, one, partial(peer, one[0], device, batches, False))
        if compiled and not quick:
            measure(f"{plain}, compiled", one, partial(peer, one[0], device, batches, True))
        measure(alone, one, partial(_eager, one, device))
        measure(side_by_side, many, partial(_eager, many, device))
        if cuda:
            measure(f"{alone}, CUDA graph", one, partial(_graph, one, device))
            measure(f"{side_by_side}, CUDA graph", many, partial(_graph, many, device))
    half = cuda
    cohort = cells(*little, half, "[transfer, transfer+]", "[1, 7]" if quick else "all")
    measure("small, one at a time", cohort, partial(_in_turn, cohort, device, _eager))
    measure(f"small, cohort of {len(cohort)}", cohort, partial(_eager, cohort, device))
    if cuda:
        measure("small, one at a time, CUDA graph", cohort, partial(_in_turn, cohort, device, _graph))
        measure(f"small, cohort of {len(cohort)}, CUDA graph", cohort, partial(_graph, cohort, device))
    same: dict[str, float] | None = None
    try:
        same = equality(cohort, device, 2 if quick else 20)
        print(f"a cohort of {len(cohort)} against each cell alone: largest difference {same['largest_difference']:.2e}")
    except Exception as error:
        failed["equality"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    for what, why in failed.items():
        print(f"  failed: {what}: {why}")
    found = {r["what"]: r["images_per_s"] for r in rows}
    small, single = (
        [rate for what, rate in found.items() if what.startswith(f"small, {kind}")] for kind in ("cohort", "one at a")
    )
    return {
        "benchmark": "gpu",
        "device": name,
        "synthetic_input": True,
        "rows": rows,
        "failed": failed,
        "equality": same,
        "small_cohort_over_one_at_a_time": round(max(small) / max(single), 3) if small and single else None,
        "goals": {"mfu": GOAL_MFU, "small_cohort": GOAL_COHORT},
    }


if __name__ == "__main__":
    found = main()
    sys.exit(found if isinstance(found, int) else 0)

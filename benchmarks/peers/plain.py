"""One cell, as a plain PyTorch script: `python -m benchmarks.peers.plain JOB.json`. Knows nothing of raygrid.

The file holds one job, or a list of them to train one after another; a line of JSON each.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Job = dict[str, Any]
BORN = time.process_time()
"""CPU seconds that the imports took"""


def network(outputs: int, size: int, width: float, dropout: float) -> nn.Sequential:
    """An AlexNet for small images, a module for each of its eight layers."""

    def wide(units: int) -> int:
        return max(1, round(units * width))

    def conv(fan_in: int, out: int, kernel: int, pool: bool) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Conv2d(fan_in, out, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, *([nn.MaxPool2d(2, 2, ceil_mode=True)] if pool else []))

    c = [3, *map(wide, (32, 48, 64, 64, 48))]
    units = [c[5] * math.ceil(size / 8) ** 2, wide(256), wide(128)]
    net = nn.Sequential(
        conv(c[0], c[1], 5, True),
        conv(c[1], c[2], 3, True),
        conv(c[2], c[3], 3, False),
        conv(c[3], c[4], 3, False),
        conv(c[4], c[5], 3, True),
        nn.Sequential(nn.Flatten(), nn.Linear(units[0], units[1]), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Dropout(dropout), nn.Linear(units[1], units[2]), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Dropout(dropout), nn.Linear(units[2], outputs)),
    )
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()))
            nn.init.zeros_(module.bias)
    return net


def data(job: Job, part: str, per_class: int | None) -> tuple[Tensor, Tensor]:
    """uint8 images [N, S, S, 3] and class ranks of the job's classes."""
    labels = np.load(job[f"{part}_labels"])
    rows = np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in job["classes"]])
    images = np.load(job[f"{part}_images"], mmap_mode="r")[rows]
    return torch.from_numpy(images), torch.from_numpy(np.searchsorted(job["classes"], labels[rows]))


def train(job: Job, report: Callable[[dict[str, float]], Any] = lambda metrics: None) -> dict[str, Any]:
    """Train one cell; its last accuracy, and the CPU seconds that it took."""
    begun = time.process_time()
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    layout = torch.channels_last if job["channels_last"] else torch.contiguous_format
    images, labels = data(job, "train", job["images_per_class"])
    tests = data(job, "test", None)
    pixels = images.float()
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2), correction=0)
    del pixels
    net = network(len(job["classes"]), images.shape[1], job["width"], job["dropout"])
    if job["base"]:
        kept = torch.load(job["base"])
        mean, std = kept["mean"], kept["std"]
        for number in range(job["n"]):
            net[number].load_state_dict(kept["layers"][number])
    for number in range(job["n"] if job["frozen"] else 0):
        net[number].requires_grad_(not job["skip"])
    net = net.to(memory_format=layout)
    learning = [p for stage in net[job["n"] if job["frozen"] else 0 :] for p in stage.parameters()]
    sgd = torch.optim.SGD(learning, job["lr"], job["momentum"], weight_decay=job["weight_decay"], foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(sgd, job["lr"], total_steps=job["steps"], cycle_momentum=False)
    autocast = torch.autocast("cpu", torch.bfloat16) if job["bf16"] else nullcontext()

    pad, size, batch = job["padding"], images.shape[1], job["batch_size"]
    padded = functional.pad(images, (0, 0, pad, pad, pad, pad))
    windows = padded.unfold(1, size, 1).unfold(2, size, 1).permute(0, 1, 2, 4, 5, 3)  # [N, top, left, S, S, 3], a view

    def enter(x_BHWC: Tensor) -> Tensor:
        return ((x_BHWC.float() - mean) / std).permute(0, 3, 1, 2).contiguous(memory_format=layout)

    def test(count: int) -> float:
        net.eval()
        right = 0
        with torch.no_grad(), autocast:
            for start in range(0, count, 250):
                where = few[start : start + 250] if count < len(tests[0]) else slice(start, start + 250)
                right += int((net(enter(tests[0][where])).argmax(1) == tests[1][where]).sum())
        net.train()
        return right / count

    few = torch.randperm(len(tests[0]))[: job["evaluation_images"]]
    due = {round(job["steps"] * (i + 1) / job["evaluations"]) for i in range(job["evaluations"])}
    order, top1 = torch.empty(0, dtype=torch.long), 0.0
    for step in range(1, job["steps"] + 1):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(images))])
        where, order = order[:batch], order[batch:]
        x = windows[where, torch.randint(2 * pad + 1, (batch,)), torch.randint(2 * pad + 1, (batch,))]
        if job["flip"]:
            x = torch.where((torch.rand(batch) < 0.5)[:, None, None, None], x.flip(2), x)
        with autocast:
            logits = net(enter(x))
        loss = functional.cross_entropy(logits.float(), labels[where])
        sgd.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning, job["clip"])
        sgd.step()
        schedule.step()
        if step in due:
            top1 = test(len(few) if step < job["steps"] else len(tests[0]))
            report({"step": step, "top1": top1})
    if job["save"]:
        layers = [stage.state_dict() for stage in net]
        torch.save({"mean": mean, "std": std, "layers": layers}, job["save"])
    return {"name": job["name"], "top1": top1, "train_cpu_s": time.process_time() - begun, "start_cpu_s": BORN}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    for one in asked if isinstance(asked, list) else [asked]:
        print(json.dumps(train(one)))

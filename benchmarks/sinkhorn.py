"""Sinkhorn and the prototype loss against plain versions, written here from the algorithm; growth with the samples;
memory.

    python benchmarks/sinkhorn.py [--samples 32000] [--prototypes 1000] [--rounds 15] [--device cuda] [--out FILE]

The versions take turns in one process on the same scores; the ratio is the median over rounds of the ratio within a
round. The peak of
extra memory is measured at the size of the paper's pixel samples, 144000, each version in a process of its own. Prints
JSON; `--out FILE` keeps it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dense_ssl.core import environment, write_json
from dense_ssl.objectives.prototypes import prototype_loss, sinkhorn


def plain_sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    "The usual form: exponentials, transposed, and by turns every row and every column divided by its sum."
    q = torch.exp(scores / epsilon).t()
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True)
        q /= prototypes
        q /= q.sum(0, keepdim=True)
        q /= samples
    q *= samples
    return q.t()


def plain_loss(z: Tensor, prototypes: Tensor, groups: Tensor) -> Tensor:
    "Eq. 4-6 with every matrix written down; groups are 0, 1, ... without gaps."
    scores = F.normalize(z, dim=1) @ F.normalize(prototypes, dim=1).T
    codes = plain_sinkhorn(scores.detach())
    sums = torch.zeros(int(groups.max()) + 1, codes.shape[1], device=z.device).index_add_(0, groups, codes)
    target = (sums / groups.bincount()[:, None])[groups]
    return -(target * F.log_softmax(scores / 0.1, dim=1)).sum(1).mean()


def seconds(function: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(ours: Callable[[], object], plain: Callable[[], object], rounds: int, device: str) -> dict:
    "Median seconds of both and the median ratio; each comes first in every other round. Two rounds warm up."
    pairs = []
    for k in range(rounds + 2):
        first, second = (ours, plain) if k % 2 else (plain, ours)
        a, b = seconds(first, device), seconds(second, device)
        pairs.append((a, b) if k % 2 else (b, a))
    pairs = pairs[2:]
    return {
        "seconds": round(statistics.median(a for a, _ in pairs), 4),
        "plain_seconds": round(statistics.median(b for _, b in pairs), 4),
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
    }


def peak_mib(version: str, prototypes: int, device: str) -> int:
    """Extra memory at the peak of the loss of 144000 samples, forward and backward, in MiB. To be called in a fresh
    process."""
    z, c, groups = inputs(144000, prototypes, device)
    before = (
        torch.cuda.memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    {"here": prototype_loss, "plain": plain_loss}[version](z, c, groups).backward()
    after = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return round((after - before) / 2**20)


def inputs(samples: int, prototypes: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    z, c = (torch.randn(n, 128, generator=g) for n in (samples, prototypes))
    groups = torch.randperm(samples, generator=g) % (samples // 5)
    return z.to(device).requires_grad_(), c.to(device).requires_grad_(), groups.to(device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32000)
    parser.add_argument("--prototypes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out")
    parser.add_argument(
        "--peak", choices=("here", "plain"), help="print the peak of extra memory of one version and end"
    )
    a = parser.parse_args()
    if a.peak:
        print(peak_mib(a.peak, a.prototypes, a.device))
        sys.exit()
    result = {"samples": a.samples, "prototypes": a.prototypes, "iterations": 3, "rounds": a.rounds}
    # First, while this process is small: Linux hands the peak of a process on to the ones that it starts.
    command = [sys.executable, __file__, "--prototypes", str(a.prototypes), "--device", a.device, "--peak"]
    result["loss_peak_mib_144000"] = {
        version: int(subprocess.run([*command, version], check=True, capture_output=True, text=True).stdout)
        for version in ("here", "plain")
    }
    growth = {}
    for factor in (1, 2, 4):
        z, c, groups = inputs(a.samples * factor, a.prototypes, a.device)
        scores = (F.normalize(z, dim=1) @ F.normalize(c, dim=1).T).detach()
        if factor == 1:
            torch.testing.assert_close(sinkhorn(scores), plain_sinkhorn(scores), rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(prototype_loss(z, c, groups), plain_loss(z, c, groups), rtol=1e-4, atol=0)
            losses = [
                lambda f=f, z=z, c=c, groups=groups: torch.autograd.grad(f(z, c, groups), (z, c))
                for f in (prototype_loss, plain_loss)
            ]
            result["sinkhorn"] = compare(
                lambda s=scores: sinkhorn(s), lambda s=scores: plain_sinkhorn(s), a.rounds, a.device
            )
            result["loss_forward_backward"] = compare(*losses, a.rounds, a.device)
        growth[f"{factor}x"] = round(
            statistics.median(seconds(lambda s=scores: sinkhorn(s), a.device) for _ in range(5)), 4
        )
    result |= {
        "sinkhorn_growth_seconds": growth,
        "environment": {k: v for k, v in environment().items() if k != "platform"},
        "device": torch.cuda.get_device_name() if a.device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
    }
    print(json.dumps(result, indent=1))
    if a.out:
        write_json(a.out, result)

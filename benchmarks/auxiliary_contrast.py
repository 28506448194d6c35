"""The auxiliary contrast against a plain full-matrix version and against its bare arithmetic, forward and backward;
time and memory.

    python benchmarks/auxiliary_contrast.py [--anchors 10000] [--candidates 40000] [--rounds 5] [--device cuda] [--out
    FILE]

The versions take turns in one process on the same features; a ratio is the median over rounds of the ratio within a
round. "arithmetic" is
what the paper's loss cannot do without where scores are made twice: four matrix products and two exponentials, in
blocks of 16 MiB. On a CPU
seconds are the processor's, so that other work on the machine does not count. The peak of extra memory is measured for
each version in a
process of its own; the plain one takes 13 GB. Prints JSON; `--out FILE` keeps it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from dense_ssl.core import environment, write_json
from dense_ssl.objectives.auxiliary_contrast import auxiliary_contrast, auxiliary_contrast_plain

CHANNELS = 128


def arithmetic(anchors: Tensor, candidates: Tensor, anchor_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    a, c = F.normalize(anchors.detach(), dim=1), F.normalize(candidates.detach(), dim=1)
    to_a, to_c, block = torch.empty_like(a), torch.zeros_like(c), 2**22 // len(c)
    for start in range(0, len(a), block):
        rows = a[start : start + block]
        torch.mm(rows, c.T).exp_()
        scores = torch.mm(rows, c.T).exp_()
        torch.mm(scores, c, out=to_a[start : start + block])
        to_c.addmm_(scores.T, rows)
    return to_c


def inputs(anchors: int, candidates: int, labels: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and ids: labels of unequal size, 512 images (128 of the batch, 384 of the bank) of 100 superpixels."""
    g = torch.Generator().manual_seed(0)
    ids = [
        torch.stack(
            [
                (torch.rand(n, generator=g) ** 1.3 * labels).long(),
                *(torch.randint(most, (n,), generator=g) for most in (100, images)),
            ],
            1,
        )
        for n, images in ((anchors, 128), (candidates, 512))
    ]
    features = [torch.randn(n, CHANNELS, generator=g).to(device).requires_grad_() for n in (anchors, candidates)]
    return *features, *(i.to(device) for i in ids)


def step(version: str, x: Tensor, y: Tensor, x_ids: Tensor, y_ids: Tensor) -> None:
    "Forward and backward."
    if version == "arithmetic":
        arithmetic(x, y, x_ids, y_ids)
    elif version == "plain":
        torch.autograd.grad(auxiliary_contrast_plain(x, y, x_ids, y_ids), (x, y))
    elif version == "here, three quarters from a bank":
        quarter = len(y) // 4
        torch.autograd.grad(
            auxiliary_contrast(x, y[:quarter], x_ids, y_ids[:quarter], bank=(y[quarter:], y_ids[quarter:])), (x, y)
        )
    else:
        torch.autograd.grad(auxiliary_contrast(x, y, x_ids, y_ids), (x, y))


VERSIONS = {
    "here": 60,
    "plain": 60,
    "arithmetic": 60,
    "here, three quarters from a bank": 60,
    "here, 2 labels": 2,
    "here, 5000 labels": 5000,
}


def memory(device: str) -> int:
    return (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anchors", type=int, default=10000)
    parser.add_argument("--candidates", type=int, default=40000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out")
    parser.add_argument("--peak", choices=VERSIONS, help="print the peak of extra memory of one version in MiB and end")
    a = parser.parse_args()
    if a.peak:
        given = inputs(a.anchors, a.candidates, VERSIONS[a.peak], a.device)
        step(a.peak, *(x[:64] for x in given))  # what the libraries take once is not the loss's
        before = memory(a.device)
        step(a.peak, *given)
        print(round((memory(a.device) - before) / 2**20))
        sys.exit()
    # First, while this process is small: Linux hands the peak of a process on to the ones that it starts.
    command = [
        sys.executable,
        __file__,
        "--anchors",
        str(a.anchors),
        "--candidates",
        str(a.candidates),
        "--device",
        a.device,
        "--peak",
    ]
    peaks = {
        name: int(subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout)
        for name in VERSIONS
        if name != "arithmetic"
    }
    data = {labels: inputs(a.anchors, a.candidates, labels, a.device) for labels in {*VERSIONS.values()}}
    x, y, x_ids, y_ids = data[60]
    mine, plain = (
        torch.autograd.grad(f(x, y, x_ids, y_ids), (x, y)) for f in (auxiliary_contrast, auxiliary_contrast_plain)
    )
    accuracy = {
        name: float(f"{(p - q).abs().max() / q.abs().max():.1e}")
        for name, p, q in zip(("anchors", "candidates"), mine, plain, strict=True)
    }
    del mine, plain
    seconds, clock = {name: [] for name in VERSIONS}, time.perf_counter if a.device == "cuda" else time.process_time
    for k in range(a.rounds + 1):
        names = [*VERSIONS]
        for name in names[k % len(names) :] + names[: k % len(names)]:  # each has its turn in every place
            began = clock()
            step(name, *data[VERSIONS[name]])
            if a.device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - began)
    seconds = {name: values[1:] for name, values in seconds.items()}  # one round to warm up
    versions = {
        name: {
            "seconds": round(statistics.median(values), 3),
            "ratio_to_here": round(statistics.median(p / q for p, q in zip(values, seconds["here"], strict=True)), 3),
        }
        | ({"peak_mib": peaks[name]} if name in peaks else {})
        for name, values in seconds.items()
    }
    counts = [torch.bincount(i[:, 0], minlength=60).double() for i in (x_ids, y_ids)]
    result = {
        "anchors": a.anchors,
        "candidates": a.candidates,
        "channels": CHANNELS,
        "labels": 60,
        "positive_pairs": int(counts[0] @ counts[1]),
        "rounds": a.rounds,
        "largest_gradient_difference_to_plain": accuracy,
        "versions": versions,
        "ratio_to_plain": round(
            statistics.median(p / q for p, q in zip(seconds["here"], seconds["plain"], strict=True)), 3
        ),
        "ratio_to_arithmetic": round(
            statistics.median(p / q for p, q in zip(seconds["here"], seconds["arithmetic"], strict=True)), 3
        ),
        "environment": {k: v for k, v in environment().items() if k != "platform"},
        "device": torch.cuda.get_device_name() if a.device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
    }
    print(json.dumps(result, indent=1))
    if a.out:
        write_json(a.out, result)

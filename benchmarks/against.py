"""The same steps by the code of two trees, in turns: what a change costs on this machine, whatever else runs on it.

    git worktree add ../before COMMIT && python benchmarks/against.py ../before [--rounds 20] [--out FILE]

Prints the median and the quartiles of the ratio of processor seconds, this tree's over the other's.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from dense_ssl.core import environment, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.data.loading import PairViews, Samples, StepBatches, step_loader
from dense_ssl.data.views import paired_views, sample_generator
from dense_ssl.methods.catalog import build_method
from dense_ssl.models.encoders import build_encoder
from dense_ssl.models.point_unet import PointUNet
from dense_ssl.objectives.auxiliary_contrast import auxiliary_contrast
from dense_ssl.objectives.prototypes import prototype_loss, sinkhorn
from dense_ssl.objectives.set_infonce import pixel_infonce, set_infonce


def training_steps() -> dict[str, Callable[[], object]]:
    "Whole steps of three methods on one batch: ResNet-18, 16 views of 112 pixels. And the making of views."
    room = open_data("room", count=16, size=(120, 160))
    samples = Samples(room, (112, 112), 0)
    batch = next(iter(step_loader(samples, PairViews(112), StepBatches(16, 16, 0, 0, 1))))

    def step_of(name: str) -> Callable[[], None]:
        torch.manual_seed(0)
        method = build_method(name, build_encoder("resnet18"), out=252)
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.01)

        def step() -> None:
            loss, _ = method(*batch.inputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step(0, 10)

        return step

    made = [(room[i], i) for i in range(8)]
    return {
        **{name: step_of(name) for name in ("pixpro", "pixcontrast", "pixdepth")},
        "8 pairs of views": lambda: [paired_views(s, 112, sample_generator(0, i)) for s, i in made],
    }


def objectives() -> dict[str, Callable[[], object]]:
    "Forward and backward of the objectives that are large in the papers, smaller than there."
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    def ids(n: int, *most: int) -> torch.Tensor:
        return torch.stack([torch.randint(m, (n,), generator=g) for m in most], 1)

    def both(function: Callable, *shapes: tuple[int, int]) -> Callable[[], object]:
        x = [rand(*shape).requires_grad_() for shape in shapes]
        return lambda: torch.autograd.grad(function(*x), x)

    torch.manual_seed(0)
    network = PointUNet(3, 64, (32, 64, 96))
    weights = list(network.parameters())
    pair, cells = torch.arange(8).repeat_interleave(512), torch.arange(8).repeat_interleave(2400)
    anchors, candidates, groups, (one, two) = (
        ids(3000, 60, 4000, 12),
        ids(12000, 60, 4000, 12),
        ids(8000, 2000)[:, 0],
        ids(19200, 40, 40).T,
    )
    voxels = torch.cat([ids(9000, 2), ids(9000, 60, 60), ids(9000, 2)], 1).unique(dim=0).int()
    rows, scores = rand(len(voxels), 3), F.normalize(rand(16000, 1000), dim=1)
    return {
        "auxiliary contrast": both(
            lambda a, c: auxiliary_contrast(a, c, anchors, candidates), (3000, 128), (12000, 128)
        ),
        "prototype loss": both(lambda z, c: prototype_loss(z, c, groups), (8000, 128), (300, 128)),
        "pixel InfoNCE": both(lambda a, b: pixel_infonce(a, b, 0.4, pair), (4096, 64), (4096, 64)),
        "set InfoNCE": both(lambda a, b: set_infonce(a, one, b, two, 0.4, cells, cells), (19200, 64), (19200, 64)),
        "point U-Net": lambda: torch.autograd.grad(network(voxels, rows).square().sum(), weights),
        "Sinkhorn": lambda: sinkhorn(scores),
    }


def serve() -> None:
    "Run the step that is asked for by a line, and say how many seconds of the processor it took."
    torch.set_num_threads(1)
    steps = {**training_steps(), **objectives()}
    print(*steps, sep="|", flush=True)
    for line in sys.stdin:
        began = time.process_time()
        steps[line.strip()]()
        print(time.process_time() - began, flush=True)


class Tree:
    "A process that runs steps by the code of a tree."

    def __init__(self, tree: Path):
        env = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, __file__, "--serve"], cwd=tree, env=env, **pipes)
        self.steps = self.process.stdout.readline().strip().split("|")

    def __call__(self, step: str) -> float:
        print(step, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def compare(step: str, old: Tree, new: Tree, rounds: int) -> dict[str, float]:
    "Quartiles of new over old, which take turns at coming first."
    old(step), new(step)
    ratios = []
    for k in range(rounds):
        took = {tree: tree(step) for tree in ((old, new) if k % 2 else (new, old))}
        ratios.append(took[new] / took[old])
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": round(median, 3), "quartiles": [round(low, 3), round(high, 3)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, nargs="?", help="a working tree of the project")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.serve:
        return serve()
    old, new = Tree(a.tree), Tree(Path(__file__).resolve().parents[1])
    result = {}
    for step in new.steps:
        row = result[step] = compare(step, old, new, a.rounds)
        print(f"{step:20} {row['median']:.3f}  ({row['quartiles'][0]:.3f} to {row['quartiles'][1]:.3f})", flush=True)
    if a.out:
        write_json(a.out, {"rounds": a.rounds, "this tree over the other": result, "environment": environment()})


if __name__ == "__main__":
    main()

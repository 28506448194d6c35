"""What a training step without signals would make the host wait for on a GPU, counted where every operation passes: at
the dispatcher."""

import collections
import functools
import sys
import traceback
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch._dynamo  # a mode makes torch import it, which would be counted and takes long under one
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "gpu"))
from common import batches, build, configuration, images, launch

from dense_ssl.models import point_unet
from dense_ssl.training.loop import build_optimizer, setup, train_step

# The shape of their result, or a number for Python, depends on values: the host must have them. lift_fresh: numbers of
# Python
# become a tensor, which a GPU gets by a copy from memory that is not pinned, after all that was asked of it before.
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "equal",
    "is_nonzero",
    "lift_fresh",
    "_linalg_svd",
    "_linalg_eigh",
    "item",
}


class Waits(TorchDispatchMode):
    "Counts operations that would wait, by name and by the project's line that asked for them."

    def __init__(self):
        super().__init__()
        self.found = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in ("index", "index_put", "index_put_"):
            waits = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        elif name == "repeat_interleave":
            waits = kwargs.get("output_size") is None
        else:
            waits = name in WAITS
        if waits:
            self.count(name)
        return func(*args, **kwargs)

    def count(self, name: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/dense_ssl/" in f.filename]
        line = (frames or traceback.extract_stack())[-1]
        self.found[name, f"{Path(line.filename).name}: {line.line}"] += 1


class Calls(TorchFunctionMode):
    """Adds what the dispatcher does not show on a CPU: copies to the host, and numbers in `where`, which a GPU gets by
    a copy."""

    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu) or (
            func in (torch.where, torch.Tensor.where) and not all(isinstance(x, torch.Tensor) for x in args)
        ):
            self.waits.count(func.__name__)
        return func(*args, **kwargs or {})


def found_in(function) -> collections.Counter:
    with Waits() as mode, Calls(mode):
        function()
    return mode.found


def test_the_counter_sees_what_waits():
    x = torch.arange(6.0)
    waiting = [
        lambda: x.sum().item(),
        lambda: x[x > 2],
        lambda: (x > 2).nonzero(),
        lambda: x.unique(),
        lambda: torch.tensor(3.0),
        lambda: float(x[0]),
        lambda: torch.where(x > 2, x, 0.0),
        lambda: x.long().bincount(),
        lambda: x.repeat_interleave(x.long()),
        lambda: bool((x > 2).any()),
        lambda: x.index_put((x > 2,), x.new_zeros(())),
        lambda: x[[1, 2]],
        lambda: torch.equal(x, x),
        lambda: x.tolist(),
        lambda: x.where(x > 2, 0.0),
    ]
    still = [
        lambda: x.masked_fill(x > 2, 0.0),
        lambda: x.sort(),
        lambda: x[x.long()],
        lambda: x.new_full((2,), 3.0),
        lambda: x * 2 + 1,
        lambda: x.topk(2),
        lambda: torch.where(x > 2, x, x.new_full((), 1.0)),
    ]
    assert [found_in(f).total() > 0 for f in waiting + still] == [True] * len(waiting) + [False] * len(still)


# Name to (method, settings, operations that wait in a step).
TINY = {"encoder": "timm/test_resnet"}
PROJECTOR = {"hidden": 32, "out": 30}
POINTS = {"channels": (32, 16, 8, 8), "out": 8, "point_widths": (8, 8, 8), "voxel": 0.1, "matches": 100}
RUNS = {
    "pixcontrast": ("pixcontrast", {**TINY, "method_options": PROJECTOR}, 0),
    "pixpro": ("pixpro", {**TINY, "method_options": PROJECTOR}, 0),
    "pixdepth": ("pixdepth", {**TINY, "method_options": PROJECTOR}, 0),
    "pixdepth in unit max": ("pixdepth", {**TINY, "method_options": {**PROJECTOR, "unit": "max"}}, 0),
    "pixdepth, views on the device": ("pixdepth", {**TINY, "method_options": PROJECTOR, "views": "device"}, 0),
    "swav": (
        "swav",
        {**TINY, "method_options": {"prototypes": 20, "hidden": 32, "out": 16, "queue": 8, "freeze": 1}},
        0,
    ),
    "moco": ("moco", {**TINY, "method_options": {"queue": 16, "hidden": 32, "out": 16}}, 0),
    "densecl": ("densecl", {**TINY, "method_options": {"queue": 16, "hidden": 32, "out": 16}}, 0),
    # but for every `refit`-th step, in which k-means runs on the CPU
    "picie": ("picie", {"method_options": {"clusters": 5, "out": 32, "bank": 64, "refit": 100}}, 0),
    "monodepth": ("monodepth", {}, 0),
    "cpcdr": ("cpcdr", {"method_options": {"prototypes": 20, "copy_paste": {"images": 2}}}, 0),
    "auxcontrast": (
        "auxcontrast",
        {
            "output_stride": 8,
            "method_options": {
                "anchors": 100,
                "candidates": 400,
                "from_bank": 300,
                "bank": 8,
                "bank_rows": 16,
                "channels": 32,
                "out": 16,
                "compiled": False,
            },
        },
        0,
    ),
    # How many voxels the 3D network's two coarser levels have, which is known where it is: a loader would take seconds
    # for it.
    "pri3d": ("pri3d", {"crop": (48, 64), "method_options": {**POINTS, "depth_weight": 1.0}}, 2),
    "pri3d, view alone": (
        "pri3d",
        {"crop": (48, 64), "method_options": {**POINTS, "geo": False, "negatives": "batch"}},
        0,
    ),
    "geosets": ("geosets", {"crop": (48, 64), "method_options": {**POINTS, "stage_one": 0.5}}, 0),
    "geosets, points": (
        "geosets",
        {"crop": (48, 64), "method_options": {**POINTS, "stage_one": 0.5, "aggregate": "points", "set_cells": 400}},
        0,
    ),
    "geosets of crops": (
        "geosets",
        {"method_options": {**POINTS, "posed": False, "geo": False, "stage_one": 0.0, "second": ("view", "sets")}},
        0,
    ),
}


def waits_of_step(method_name: str, settings: dict) -> collections.Counter:
    "What the third of four steps of a small run waits for; the first two warm up what is made once."
    config = configuration(method_name, **{"crop": 64, "batch": 4, "steps": 4, "clip": 1.0, **settings})
    fabric = setup(config, launch("cpu"))
    method = build(config)
    wrapped, optimizer = fabric.setup(method, build_optimizer(method, config))

    def step(k: int, batch) -> None:
        train_step(fabric, wrapped, optimizer, [batch], k, config, signals=False)
        method.after_step(k, 4)

    made = batches(config, method, images(config, 4, (48, 64) if config.crop == (48, 64) else (64, 80)), 3)
    step(0, made[0]), step(1, made[1])
    return found_in(lambda: step(2, made[2]))


@pytest.mark.parametrize("name", RUNS)
def test_a_step_waits_as_little_as_is_said(name):
    method, settings, said = RUNS[name]
    grid = functools.partial(point_unet.VoxelGrid, tables=True)
    with (  # what a GPU gets
        patch("dense_ssl.objectives.auxiliary_contrast._static", return_value=True),
        patch.object(point_unet, "VoxelGrid", grid),
    ):
        found = waits_of_step(method, settings)
    where = "\n".join(f"{count} x {what} in {line}" for (what, line), count in found.items())
    assert found.total() == said, where

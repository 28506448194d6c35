"""What a training step without signals would make the host wait for on a GPU, counted where every operation passes: at the dispatcher."""

import collections
import traceback

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dense_ssl.data.catalog import open_data
from dense_ssl.data.loading import PairViews, Samples, StepBatches, step_loader
from dense_ssl.methods.catalog import build_method
from dense_ssl.models.encoders import build_encoder
from dense_ssl.training.configuration import Launch, Pretrain, parse
from dense_ssl.training.loop import build_optimizer, setup, train_step

# The size of their result, or a number for Python, depends on values: the host must have them. lift_fresh: numbers of Python become a tensor, which
# a GPU gets by a copy from memory that is not pinned.
WAITS = {"_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount",
         "equal", "is_nonzero", "lift_fresh", "_linalg_svd", "item"}


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
        line = frames[-1] if frames else traceback.extract_stack()[-4]
        self.found[name, f"{line.filename.rpartition('/dense_ssl/')[2]}:{line.name}: {line.line}"] += 1


class Copies(TorchFunctionMode):
    "Counts copies to the host among `waits`: on a CPU, where they are none, no operation of the dispatcher shows them."

    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu):
            self.waits.count(func.__name__)
        return func(*args, **kwargs or {})


CROPS = {"name": "room", "options": {"count": 8, "size": [96, 128]}}
PAIRS = {"name": "room_pairs", "options": {"count": 4, "size": [48, 64], "voxel": 0.1}}
POINTS = {"channels": [32, 16, 8, 8], "out": 8, "point_widths": [8, 8, 8], "voxel": 0.1, "matches": 100}
SMALL = {"encoder": "resnet18", "crop": 64, "batch_size": 4, "steps": 4, "lr": 0.05, "clip": 1.0}
RUNS = {
    "pixcontrast": ({"method_options": {"hidden": 32, "out": 32}}, 0),
    "pixpro": ({"method_options": {"hidden": 32, "out": 32}}, 0),
    "pixdepth": ({"method_options": {"hidden": 32, "out": 30}}, 0),
    "pixdepth-max": ({"method_options": {"hidden": 32, "out": 30, "unit": "max"}}, 0),
    "swav": ({"method_options": {"prototypes": 20, "hidden": 32, "out": 16, "queue": 8, "freeze": 1}}, 0),
    "moco": ({"method_options": {"queue": 16, "hidden": 32, "out": 16}}, 0),
    "densecl": ({"method_options": {"queue": 16, "hidden": 32, "out": 16}}, 0),
    "picie": ({"method_options": {"clusters": 5, "out": 32, "bank": 64, "refit": 100}}, 0),
    "cpcdr": ({"data": {"name": "room", "options": {"count": 8, "size": [96, 128], "proposals": "labels"}},
               "method_options": {"prototypes": 20, "copy_paste": {"images": 2}}}, 0),
    "auxcontrast": ({"data": {"name": "room", "options": {"count": 8, "size": [96, 128], "auxiliary": True}}, "output_stride": 8,
                     "method_options": {"anchors": 100, "candidates": 400, "from_bank": 300, "bank": 8, "bank_rows": 16, "channels": 32, "out": 16}}, 0),
    # The sizes of the 3D network's neighbour tables: of two coarser levels, of all neighbours, and of the 13 offsets and 8 parts of every level.
    "pri3d": ({"data": PAIRS, "crop": [48, 64], "method_options": {**POINTS, "depth_weight": 1.0}}, 4),
    "pri3d-view": ({"data": PAIRS, "crop": [48, 64], "method_options": {**POINTS, "geo": False, "negatives": "batch"}}, 0),
    "geosets": ({"data": PAIRS, "crop": [48, 64], "method_options": {**POINTS, "stage_one": 0.5}}, 0),
    "geosets-points": ({"data": PAIRS, "crop": [48, 64], "method_options": {**POINTS, "stage_one": 0.5, "aggregate": "points", "set_cells": 400}}, 0),
    "geosets-crops": ({"data": {"name": "room", "options": {"count": 4, "size": [96, 128], "proposals": "truth"}},
                       "method_options": {**POINTS, "posed": False, "geo": False, "stage_one": 0.0, "second": ["view", "sets"]}}, 0),
}


def waits_of_step(name: str) -> collections.Counter:
    "What the third of four steps of a small run waits for; the first two warm up what is made once."
    config = parse(Pretrain, {"data": CROPS, **SMALL, "method": name.partition("-")[0], **RUNS[name][0]})
    fabric = setup(config, Launch(accelerator="cpu", tensorboard=False))
    torch.manual_seed(0)
    dataset = open_data(config.data.name, config.data.split, **config.data.options)
    method = build_method(config.method, build_encoder(config.encoder, config.output_stride), **config.method_options)
    wrapped, optimizer = fabric.setup(method, build_optimizer(method, config))
    make = getattr(method, "inputs", PairViews)(config.crop, config.scale)
    loader = iter(step_loader(Samples(dataset, make.smallest, 0), make, StepBatches(len(dataset), 4, 0, 0, 4)))
    for step in range(4):
        batch, mode = next(loader), Waits()
        with mode, Copies(mode):
            train_step(fabric, wrapped, optimizer, [batch], step, config, signals=False)
            method.after_step(step, 4)
        if step == 2:
            return mode.found


@pytest.mark.parametrize("name", RUNS)
def test_a_step_waits_as_little_as_is_said(name):
    found = waits_of_step(name)
    said = "\n".join(f"{count} x {what} in {where}" for (what, where), count in found.items())
    print(said)
    assert found.total() == RUNS[name][1], said

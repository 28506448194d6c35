"""Is what a GPU computes right? Operations against float64 on the CPU, methods against the CPU's losses, several
processes, a killed run."""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from common import batches, build, configuration, images, launch
from torch import Tensor, nn

from dense_ssl.core import is_done, write_json
from dense_ssl.data.views import View
from dense_ssl.geometry.camera import backproject, normals
from dense_ssl.geometry.depth import normalize_depth, resize_depth
from dense_ssl.methods.picie import cluster_loss, resample
from dense_ssl.methods.swav import swap_loss
from dense_ssl.models.encoders import read_weights
from dense_ssl.models.heads import collapse_signals, momentum_update
from dense_ssl.models.point_unet import PointUNet
from dense_ssl.models.semantic_fpn import sample_features
from dense_ssl.objectives import (
    auxiliary_contrast,
    instance_contrast,
    pixel_consistency,
    pixel_contrast,
    prototypes,
    set_infonce,
)
from dense_ssl.positives import masks
from dense_ssl.processes import kill_group
from dense_ssl.training.configuration import Pretrain, parse
from dense_ssl.training.launch import worker_command
from dense_ssl.training.loop import Log, prepare, setup, train_step

FLOAT32 = 2e-5  # relative, over whole tensors: sums of a few thousand float32 in another order
METHODS = {
    "pixcontrast": {"method_options": {"hidden": 64, "out": 60}},
    "pixpro": {"method_options": {"hidden": 64, "out": 60}},
    "pixdepth": {"method_options": {"hidden": 64, "out": 60}},
    "swav": {"method_options": {"prototypes": 30, "hidden": 64, "out": 32, "freeze": 2}},
    "moco": {"method_options": {"queue": 64, "hidden": 64, "out": 32}},
    "densecl": {"method_options": {"queue": 64, "hidden": 64, "out": 32}},
    "picie": {"method_options": {"clusters": 6, "out": 32, "bank": 256}},
    "cpcdr": {
        "method_options": {"prototypes": 30, "pyramid": 32, "channels": 32, "out": 32, "copy_paste": {"images": 4}}
    },
    "monodepth": {},
    "auxcontrast": {
        "output_stride": 8,
        "method_options": {
            "anchors": 200,
            "candidates": 800,
            "from_bank": 400,
            "bank": 16,
            "bank_rows": 32,
            "channels": 32,
            "out": 16,
            "dropout": 0.0,
            "atrous_rates": (2, 4, 6),
        },
    },
    "pri3d": {
        "method_options": {
            "channels": (32, 32, 16, 16),
            "out": 16,
            "point_widths": (8, 12),
            "matches": 100,
            "voxel": 0.1,
        }
    },
    "geosets": {
        "method_options": {
            "stage_one": 0.5,
            "channels": (32, 32, 16, 16),
            "out": 16,
            "point_widths": (8, 12),
            "matches": 100,
            "voxel": 0.1,
        }
    },
}


def relative(found: Tensor, wanted: Tensor) -> float:
    "Norm of the difference over the norm of what is wanted; nan must meet nan."
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    if found.shape != wanted.shape or not torch.equal(found.isnan(), wanted.isnan()):
        return float("inf")
    found, wanted = found.nan_to_num(), wanted.nan_to_num()
    return ((found - wanted).norm() / wanted.norm().clamp_min(1e-12)).item()


def operations() -> dict[str, tuple[Callable, list[Tensor]]]:
    """Name to a function of float tensors, which gives a tensor or several, and the tensors, float64. Everything else
    lies in the function."""
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def ids(n: int, most: int) -> Tensor:
        return torch.randint(-1, most, (n,), generator=g)

    depth = rand(2, 40, 52).abs() + 0.5
    depth[:, :7, :9] = torch.nan
    depth_map = {"resize_depth down": (8, 10), "resize_depth up": (60, 80)}
    positives, groups, labels = (
        torch.rand(2, 49, 36, generator=g) < 0.2,
        ids(500, 60),
        torch.stack([ids(300, 8), ids(300, 20), ids(300, 4).abs()], 1),
    )
    pair = torch.arange(3).repeat_interleave(70)
    sets = torch.stack([ids(210, 5) for _ in range(2)])
    position = torch.stack(
        [
            torch.randint(2, (200,), generator=g).double(),
            *(torch.rand(200, generator=g, dtype=torch.float64) * (n - 1) for n in (64, 48)),
        ],
        1,
    )
    voxels = torch.unique(
        torch.cat([torch.randint(2, (900, 1), generator=g), torch.randint(12, (900, 3), generator=g)], 1), dim=0
    ).int()
    network = PointUNet(3, 8, (8, 12))
    K = torch.tensor([[60.0, 0, 26], [0, 60, 20], [0, 0, 1]], dtype=torch.float64)
    xy = [rand(2, n, 2).abs() * 60 for n in (49, 36)]

    def at(x: Tensor, xy: Tensor) -> Tensor:
        view = View(x, xy, x.new_ones(2, 2), x.new_ones(2, 2), depth=x[:, 0])
        small = view.at((6, 5))
        return torch.cat([small.xy.flatten(), small.depth.flatten()])

    def points(x: Tensor) -> Tensor:
        return network.to(x)(voxels.to(x.device), x)

    def moved(x: Tensor, y: Tensor) -> Tensor:
        a, b = (nn.Linear(8, 8, bias=False).to(x) for _ in range(2))
        a.weight.data.copy_(x), b.weight.data.copy_(y)
        momentum_update(a, b, 0.9)
        return a.weight.data

    def seen(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        views = [View(x, v.expand(2, 2, 8, 8), x.new_ones(2, 2), x.new_ones(2, 2)) for v in (first, second)]
        return resample(x, *views)[0]

    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="xy")).double()[None]
    return {
        "normalize_depth": (normalize_depth, [depth]),
        **{name: (lambda d, size=size: resize_depth(d, size), [depth]) for name, size in depth_map.items()},
        "backproject": (lambda d: backproject(d, K.to(d)), [depth]),
        "normals": (lambda d: normals(backproject(d, K.to(d))), [depth.nan_to_num(1.0)]),
        "view.at": (at, [rand(2, 3, 24, 20), rand(2, 2, 24, 20)]),
        "distance_mask": (lambda a, b: masks.distance_mask(a, b, 0.7, a.new_full((2,), 30.0)).double(), xy),
        "depth_mask": (
            lambda a, b: masks.depth_mask(a, b, 0.3).double(),
            [torch.rand(2, n, generator=g, dtype=torch.float64) for n in (49, 36)],
        ),
        "pixel_contrast": (
            lambda a, b: pixel_contrast.pixel_contrast(a, b, positives.to(a.device)),
            [rand(2, 49, 32), rand(2, 36, 32)],
        ),
        "multi_threshold_contrast": (
            lambda a, b: pixel_contrast.multi_threshold_contrast(a, b, [positives.to(a.device)] * 2),
            [rand(2, 49, 32), rand(2, 36, 32)],
        ),
        "pixel_consistency": (
            lambda a, b, c, d: pixel_consistency.pixel_consistency(a, b, c, d, positives.to(a.device)),
            [rand(2, n, 32) for n in (49, 36) * 2],
        ),
        "propagate": (pixel_consistency.propagate, [rand(2, 49, 32), rand(2, 49, 16)]),
        "sinkhorn": (lambda s: prototypes.sinkhorn(F.normalize(s, dim=1)), [rand(500, 40)]),
        "group_mean": (lambda c: prototypes.group_mean(c, groups.to(c.device)), [rand(500, 40)]),
        "prototype_loss": (
            lambda z, c: prototypes.prototype_loss(z, c, groups.to(z.device)),
            [rand(500, 32), rand(40, 32)],
        ),
        "swap_loss": (
            lambda a, b, c: swap_loss(*(F.normalize(x, dim=1) for x in (a, b, c))),
            [rand(64, 32), rand(64, 32), rand(20, 32)],
        ),
        "auxiliary_contrast": (
            lambda a, b: auxiliary_contrast.auxiliary_contrast(
                a[:100], b, labels[:100].to(a.device), labels.to(a.device)
            ),
            [rand(100, 32), rand(300, 32)],
        ),
        "info_nce": (instance_contrast.info_nce, [rand(30, 16), rand(30, 16), rand(100, 16)]),
        "dense_info_nce": (
            lambda q, k, f, n: instance_contrast.dense_info_nce(q, k, f, f.flip(1), n),
            [rand(2, 49, 16), rand(2, 49, 16), rand(2, 49, 8), rand(60, 16)],
        ),
        "pixel_infonce": (
            lambda a, b: set_infonce.pixel_infonce(a, b, 0.4, pair.to(a.device)),
            [rand(210, 32), rand(210, 32)],
        ),
        **{
            f"set_infonce {n}": (
                lambda a, b, n=n: set_infonce.set_infonce(
                    a, sets[0].to(a.device), b, sets[1].to(a.device), 0.4, pair.to(a.device), pair.to(a.device), n
                ),
                [rand(210, 32), rand(210, 32)],
            )
            for n in ("pair", "batch")
        },
        "sample_features": (lambda f: sample_features(f, position.to(f), (48, 64)), [rand(2, 16, 6, 8)]),
        "point_unet": (points, [rand(len(voxels), 3)]),
        "resample": (seen, [rand(2, 6, 8, 8), grid, grid * 0.7 + 1.2]),
        "cluster_loss": (
            lambda a, b, c, d: cluster_loss(a, b, c, d, torch.ones(2, 6, 6, dtype=torch.bool, device=a.device)),
            [rand(2, 16, 6, 6), rand(2, 16, 6, 6), rand(5, 16), rand(5, 16)],
        ),
        "momentum_update": (moved, [rand(8, 8), rand(8, 8)]),
        "spread": (lambda f: torch.tensor(list(collapse_signals(f).values())), [rand(2, 16, 8, 8)]),
    }


def check_operations(device: str, tiny: bool, options: object) -> dict:
    "Values and gradients in float32 on the device against float64 on the CPU, as norms of whole tensors."
    errors, failed = {}, []
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name, (function, tensors) in operations().items():
        results = []
        for place, dtype in (("cpu", torch.float64), (device, torch.float32)):
            given = [t.to(place, dtype).requires_grad_() for t in tensors]
            value = function(*given)
            grads = (
                torch.autograd.grad(
                    (
                        value.nan_to_num() * torch.linspace(0.5, 1.5, value.numel(), device=value.device).view_as(value)
                    ).sum(),
                    given,
                    allow_unused=True,
                )
                if value.requires_grad
                else []
            )
            results.append([value, *(x for x in grads if x is not None)])
        errors[name] = max(relative(b, a) for a, b in zip(*results, strict=True))
        if not errors[name] < FLOAT32 * (
            50 if name in ("point_unet", "spread") else 1
        ):  # deep, with batch norm; singular values
            failed.append(f"{name}: {errors[name]:.2e}")
    return {
        "relative_error": errors,
        "tolerance": FLOAT32,
        "failed": failed,
        "says": f"{len(errors)} operations, largest error {max(errors.values()):.1e}",
    }


def small(name: str, tiny: bool, precision: str = "32-true") -> Pretrain:
    "The settings that a method is checked with; tiny: a network of 28 thousand parameters where the method takes any."
    encoder = "timm/test_resnet" if tiny and name in ANY_ENCODER else "resnet18"
    return configuration(name, 64, 4 if tiny else 8, encoder, precision=precision, **METHODS[name])


def losses(config: Pretrain, device: str, steps: int, made: list, shift: float = 0.0) -> list[float]:
    "The losses of a short training on given batches, from weights each shifted by at most `shift` of its value."
    fabric = setup(config, launch(device))
    built = build(config)
    for p in built.parameters():
        p.data.mul_(1 + shift * (2 * torch.rand(p.shape) - 1))
    method, optimizer = prepare(built, config, launch(device), fabric)
    wrapped, optimizer = fabric.setup(method, optimizer)
    wrapped.train()
    values = []
    for step, batch in enumerate(made[:steps]):
        optimizer.param_groups[0]["lr"] = 0.02
        loss, _ = train_step(
            fabric, wrapped, optimizer, [batch.to(fabric.device)], step, config, signals=step == steps - 1
        )
        method.after_step(step, steps)
        values.append(loss)
    return torch.stack(values).double().tolist()


ANY_ENCODER = ("pixcontrast", "pixpro", "pixdepth", "swav", "moco", "densecl")
ULP = {"32-true": 2.0**-23, "bf16-mixed": 2.0**-8}  # of the format that a path rounds to
FIRST = {"32-true": 1e-5, "bf16-mixed": 0.02}  # of the first loss, over the level of all


def check_method(name: str) -> Callable:
    def check(device: str, tiny: bool, options: object) -> dict:
        """Twenty losses beside the CPU's: the first to a tolerance, all of them as near as the CPU is to itself.

        With batch norm on a few images the paths part by a factor of hundreds a step, whatever differs: so the bound
        is three times as far
        as the CPU parts from itself when its weights are shifted by a unit in the last place of the format. Methods
        that draw pixels on the
        device draw others there, which is as large a change as bf16's.
        """
        steps = 1 if tiny else 20
        config, draws = small(name, tiny), name == "auxcontrast" and device == "cuda"
        made = batches(config, build(config), images(config, 8 if tiny else 16, (96, 128)), steps)
        there = torch.tensor(losses(config, "cpu", steps, made))
        level = there.abs().mean()
        found, failed = {}, []
        for p in ("32-true", "bf16-mixed") if device == "cuda" else ("32-true",):
            here = torch.tensor(losses(small(name, tiny, p), device, steps, made))
            own = torch.tensor(losses(config, "cpu", steps, made, ULP["bf16-mixed" if draws else p]))
            gap, own = ((x - there).abs() / level for x in (here, own))
            found[p] = {"losses": here.tolist(), "gap": gap.tolist(), "own": own.tolist()}
            bounds = {"first": 0.02 if draws else FIRST[p], "largest": 3 * own.max().item()}
            for what, value in (("first", gap[0].item()), ("largest", gap.max().item())):
                if not value <= bounds[what]:
                    failed.append(f"{p}, {what}: {value:.1e} where {bounds[what]:.1e} is allowed")
        said = (
            f"{p}: {r['gap'][0]:.0e}, then {max(r['gap']):.0e} (the CPU from itself {max(r['own']):.0e})"
            for p, r in found.items()
        )
        return {"cpu": there.tolist(), **found, "failed": failed, "says": "; ".join(said)}

    return check


RANK = """
import json, sys, torch, torch.distributed as dist
from dataclasses import fields
sys.path[:0] = {paths!r}
from dense_ssl.processes import die_with_parent
die_with_parent()
from common import batches, build, configuration, images
from checks import small
from dense_ssl.models.sync_batchnorm import sync_batchnorm
backend, device, rank, world = *sys.argv[1:3], *map(int, sys.argv[3:5])
dist.init_process_group(backend, f"file://{{sys.argv[5]}}", rank=rank, world_size=world)
config = small("pixdepth", sys.argv[6] == "tiny")
method = build(config).double().to(device)
if world > 1:
    method = sync_batchnorm(method, device)
method.train()
wrapped = torch.nn.parallel.DistributedDataParallel(method, device_ids=[0] if device == "cuda" else None)
optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.05, momentum=0.9)
losses = []
for step, batch in enumerate(batches(config, method, images(config, 8, (96, 128)), 3)):
    views = [v.to(device) for v in batch.inputs]
    part = slice(rank * config.batch_size // world, (rank + 1) * config.batch_size // world)
    for v in views:
        for name in (field.name for field in fields(v)):
            if getattr(v, name) is not None:
                value = getattr(v, name)[part]
                setattr(v, name, value.double() if value.is_floating_point() else value)
    loss, _ = wrapped(*views)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    method.after_step(step, 3)
    total = loss.detach().clone()
    dist.all_reduce(total)
    losses.append(total.item() / world)
if rank == 0:
    print("LOSSES", json.dumps(losses))
dist.destroy_process_group()
"""


def distributed(backend: str, processes: int, device: str, tiny: bool) -> list[float]:
    "Three losses of PixDepth in float64; all processes on one device."
    here, size = Path(__file__).resolve().parent, "tiny" if tiny else "full"
    with tempfile.TemporaryDirectory() as folder:
        (script := Path(folder, "rank.py")).write_text(RANK.format(paths=[str(here), str(here.parents[1])]))
        words = [sys.executable, str(script), backend, device]
        ranks = [
            subprocess.Popen(
                [*words, str(rank), str(processes), f"{folder}/meet", size],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(processes)
        ]
        said = [process.communicate() for process in ranks]
    found = [line for line in said[0][0].splitlines() if line.startswith("LOSSES")]
    if any(process.returncode for process in ranks) or not found:
        errors = "\n".join(error[-1500:] for _, error in said)
        raise RuntimeError(f"{backend} with {processes} processes: {errors}")
    return json.loads(found[0].removeprefix("LOSSES"))


def check_processes(device: str, tiny: bool, options: object) -> dict:
    "nccl with one process and gloo with two on one GPU walk the same losses (float64)."
    with ThreadPoolExecutor(2) as pool:
        backends = "nccl" if device == "cuda" else "gloo", "gloo"
        one, two = pool.map(distributed, backends, (1, 2), (device,) * 2, (tiny,) * 2)
    gap = max(abs(a - b) for a, b in zip(one, two, strict=True))
    return {
        "one": one,
        "two": two,
        "largest_difference": gap,
        "failed": [f"losses differ by {gap:.1e}"] if not gap < 1e-6 else [],
        "says": f"differ by {gap:.1e}",
    }


def check_resume(device: str, tiny: bool, options: object) -> dict:
    """kill -9 at a random step, and again; then to the end: the same bits as an uninterrupted run, where the device's
    sums have one order."""
    steps = 6 if tiny else 24
    config = small("pixdepth", tiny, "auto").model_dump(mode="json") | {
        "steps": steps,
        "data": {"name": "room", "options": {"count": 8, "size": [96, 128]}},
    }
    how = {"accelerator": device, "log_every": 1, "tensorboard": False, "checkpoint_seconds": 0, "threads": 1}

    def start(folder: Path) -> subprocess.Popen:
        write_json(folder / "params.json", config), write_json(folder / "launch.json", how)
        return subprocess.Popen(
            worker_command(folder, parse(type(launch("cpu")), how)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        process, other, kills = start(whole), start(killed), []
        for _ in range(1 if tiny else 2):
            wanted = random.randrange(1, steps - 2)
            while other.poll() is None and not any(
                line["step"] >= wanted for line in Log.read(killed / "metrics.jsonl")
            ):
                time.sleep(0.01)
            kill_group(other)
            kills.append(wanted)
            other = start(killed)
        for p in (process, other):
            _, said = p.communicate()
            if p.returncode:
                raise RuntimeError(said[-1500:])
        a, b = (read_weights(f / "encoder.safetensors") for f in (whole, killed))
        lines = [[line["loss"] for line in Log.read(f / "metrics.jsonl")] for f in (whole, killed)]
        done = is_done(whole) and is_done(killed)
    same, gap = all(torch.equal(a[k], b[k]) for k in a), max(abs(x - y) for x, y in zip(*lines, strict=True))
    failed = (
        []
        if done and gap < 1e-3 and len(lines[1]) == steps
        else [f"{len(lines[1])} of {steps} steps, losses differ by {gap:.1e}"]
    )
    return {
        "killed_after": kills,
        "same_bits": same,
        "largest_difference": gap,
        "failed": failed,
        "says": f"{'same bits' if same else f'losses differ by {gap:.1e}'}",
    }


def check_compile(device: str, tiny: bool, options: object) -> dict:
    """PixDepth's losses with torch.compile and without. A rehearsal leaves out the C++ compiler, which takes most of
    two minutes."""
    config, compiling = small("pixdepth", tiny), nn.Module.compile
    backend = {"backend": "aot_eager"} if tiny else {}
    made, values = batches(config, build(config), images(config, 8, (96, 128)), 3), []
    for compiled in (False, True):
        how = launch(device).model_copy(update={"compile": compiled})
        fabric = setup(config, how)
        with patch.object(nn.Module, "compile", lambda part: compiling(part, **backend)):
            method, optimizer = prepare(build(config), config, how, fabric)
        wrapped, optimizer = fabric.setup(method, optimizer)
        wrapped.train()
        values.append([])
        for step, batch in enumerate(made):
            loss, _ = train_step(fabric, wrapped, optimizer, [batch.to(fabric.device)], step, config, signals=False)
            method.after_step(step, 3)
            values[-1].append(loss.item())
    gap = max(abs(a - b) / abs(a) for a, b in zip(*values, strict=True))
    return {
        "losses": values,
        "largest": gap,
        "failed": [f"losses differ by {gap:.1e}"] if not gap < 2e-3 else [],
        "says": f"differ by {gap:.1e}",
    }


STAGES = {
    "check-operations": (check_operations, 60),
    **{f"check-{name}": (check_method(name), 60) for name in METHODS},
    "check-processes": (check_processes, 90),
    "check-resume": (check_resume, 120),
    "check-compile": (check_compile, 120),
}

"""Images a second of every method at its paper's encoder and crop, beside a bare supervised step; what the host waits
for; data from JPEG files."""

import collections
import itertools
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import batches, build, configuration, images, launch, seconds
from PIL import Image
from torch import Tensor, nn

from dense_ssl.data.catalog import open_data
from dense_ssl.data.device_views import on_device
from dense_ssl.data.loading import Batch, PairViews, Samples, StepBatches, step_loader
from dense_ssl.geometry.depth import write_depth_png
from dense_ssl.models.heads import momentum_copy
from dense_ssl.training.configuration import Pretrain
from dense_ssl.training.loop import build_optimizer, prepare, setup, train_step

# method: encoder, crop, batches to try from the largest on, images forward and backward and images forward alone for
# each image of the batch,
# the network between encoder and loss where there is one, options. Batches of methods whose loader makes scenes or
# clouds are made whole.
PAPER = {
    "pixdepth": ("resnet34", 224, (1024, 512, 256, 128), 2, 2, None, {"method_options": {"out": 252}}),
    "pixpro": ("resnet34", 224, (1024, 512, 256, 128), 2, 2, None, {}),
    "pixcontrast": ("resnet34", 224, (1024, 512, 256, 128), 2, 2, None, {"method_options": {"out": 252}}),
    "cpcdr": ("resnet50", (384, 768), (16, 8), 2, 0, "fpn", {}),
    "auxcontrast": ("resnet50", (321, 361), (128, 64, 32, 16), 1, 1, "network", {"output_stride": 8}),
    "geosets": ("resnet50", (240, 320), (64, 32, 16), 2, 0, "network.unet", {"method_options": {"stage_one": 0.0}}),
    "pri3d": ("resnet50", (240, 320), (32, 16), 2, 0, "network.unet", {"method_options": {"geo": False}}),
    "pri3d-geo": ("resnet50", (240, 320), (16, 8), 2, 0, "network.unet", {}),
    "swav": ("resnet50", 224, (512, 256, 128), 2, 0, None, {}),
    "moco": ("resnet50", 224, (512, 256, 128), 1, 1, None, {}),
    "densecl": ("resnet50", 224, (512, 256, 128), 1, 1, None, {}),
    "picie": ("resnet50", 320, (128, 64, 32), 2, 0, "network", {"method_options": {"refit": 1000}}),
}
CLOUD = {"channels": (32, 32, 16, 16), "out": 16, "point_widths": (8, 12), "matches": 100, "voxel": 0.1}
SMALL = {
    "pri3d-geo": {"method_options": CLOUD},
    "cpcdr": {"method_options": {"copy_paste": {"images": 2}}},
    "auxcontrast": {"output_stride": 8},
    "pixdepth": {"method_options": {"out": 60, "hidden": 64}},
    "pixcontrast": {"method_options": {"out": 60, "hidden": 64}},
    "pixpro": {"method_options": {"out": 60, "hidden": 64}},
}


def tiled(batch: Batch, times: int) -> Batch:
    "A batch of views, `times` over."

    def tile(x: object) -> object:
        if isinstance(x, Tensor):
            return x.repeat(times, *[1] * (x.ndim - 1))
        return replace(x, **{f.name: tile(getattr(x, f.name)) for f in fields(x)}) if is_dataclass(x) else x

    return replace(batch, inputs=tuple(tile(x) for x in batch.inputs))


def made_batch(config: Pretrain, method: nn.Module, name: str, size: int) -> Batch:
    """A batch of `size`: what comes from crops is made of 16 images and tiled, scenes and frame pairs are made whole,
    of few images."""
    crop = (config.crop,) * 2 if isinstance(config.crop, int) else config.crop
    whole = config.method in ("cpcdr", "pri3d", "geosets")
    count = min(size, 16)
    dataset = images(
        config, 8 if whole else count, (max(crop[0], 48) * 9 // 8 // 8 * 8, max(crop[1], 64) * 9 // 8 // 8 * 8)
    )
    batch = batches(config.model_copy(update={"batch_size": size if whole else count}), method, dataset, 1)[0]
    return batch if whole else tiled(batch, size // count)


def part_of(method: nn.Module, path: str) -> nn.Module:
    for name in path.split("."):
        method = getattr(method, name)
    return method


def bare_step(
    network: nn.Module, config: Pretrain, online: int, alone: int, device: str, amp: bool
) -> Callable[[], None]:
    """A supervised step: images through the network, their mean through a linear classifier; and images forward alone,
    as a momentum branch's."""
    crop = (config.crop,) * 2 if isinstance(config.crop, int) else tuple(config.crop)
    image = torch.randn(online, 3, *crop, device=device).to(memory_format=torch.channels_last)
    target = momentum_copy(network) if alone else None
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=amp):
        probe = network(image[:2])
    head = nn.Linear((probe[0] if isinstance(probe, list) else probe).shape[1], 1000).to(device)
    label = torch.zeros(online, dtype=torch.long, device=device)
    optimizer = build_optimizer(nn.ModuleList([network, head]), config, fused=device == "cuda")

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            out = network(image)
            out = out[0] if isinstance(out, list) else out
            if alone:
                with torch.no_grad():
                    target(image[:alone])
            loss = F.cross_entropy(head(out.float().mean((2, 3))), label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def synchronisations(step: Callable[[], object], device: str) -> dict[str, int]:
    "Lines of the project that made the host wait in one step, as PyTorch sees it."
    if device != "cuda":
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]
    return dict(collections.Counter(lines).most_common(20))


def kernels(step: Callable[[], object], device: str) -> dict:
    "Where a step's time goes: the ten largest kernels, in milliseconds, and how often the runtime waited."
    if device != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    events = found.key_averages()
    waits = {
        e.key: e.count
        for e in events
        if e.key in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    }
    by_time = sorted(
        (e for e in events if e.self_device_time_total and e.device_type.name == "CUDA"),
        key=lambda e: -e.self_device_time_total,
    )
    return {
        "waits": waits,
        "milliseconds": {e.key[:90]: round(e.self_device_time_total / 1e3, 2) for e in by_time[:10]},
    }


def method_throughput(name: str) -> Callable:
    def measure(device: str, tiny: bool, options: object) -> dict:
        encoder, crop, sizes, online, alone, inner, more = PAPER[name]
        if tiny:
            encoder, crop, sizes, more = (
                "resnet18",
                (64, 96) if isinstance(crop, tuple) else 64,
                (2,),
                {**more, **SMALL.get(name, {})},
            )
        method_name = name.partition("-")[0]
        if method_name == "auxcontrast":
            more = {
                **more,
                "method_options": {"anchors": 200, "candidates": 400, "from_bank": 200, "bank": 8} if tiny else {},
            }
        for size in sizes:
            try:
                return measured(
                    name, configuration(method_name, crop, size, encoder, **more), size, online, alone, inner, device
                )
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
        raise RuntimeError(f"{name} does not fit with a batch of {sizes[-1]}")

    return measure


def stepper(config: Pretrain, device: str) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[Batch], None]]:
    "A method, its optimizer and the training loop's own step of it."
    how = launch(device)
    fabric = setup(config, how)
    method, optimizer = prepare(build(config), config, how, fabric)
    wrapped, optimizer = fabric.setup(method, optimizer)
    wrapped.train()
    count = itertools.count()

    def step(batch: Batch) -> None:
        train_step(fabric, wrapped, optimizer, [batch], n := next(count), config, signals=False)
        method.after_step(n, 1000)

    return method, optimizer, step


def measured(name: str, config: Pretrain, size: int, online: int, alone: int, inner: str | None, device: str) -> dict:
    "Images a second of a method and of bare steps, in one process."
    method, optimizer, of_batch = stepper(config, device)
    batch = made_batch(config, method, name, size).to(device)

    def step() -> None:
        of_batch(batch)

    gpu = device == "cuda"
    rounds, warm = (8, 3) if gpu else (1, 1)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    ours = seconds(step, device, rounds, warm)
    result = {
        "batch": size,
        "encoder": config.encoder,
        "crop": config.crop,
        "step_seconds": ours,
        "images_per_second": size / ours,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None,
        "host_waits": synchronisations(step, device),
        "profile": kernels(step, device),
    }
    networks = {"encoder": method.encoder if hasattr(method, "encoder") else part_of(method, inner).encoder}
    networks |= {"network": part_of(method, inner)} if inner else {}
    for what, network in networks.items():
        optimizer.zero_grad(set_to_none=True)
        bare = seconds(bare_step(network, config, online * size, alone * size, device, gpu), device, rounds, warm)
        result |= {f"bare_{what}_seconds": bare, f"ratio_to_{what}": bare / ours}
    waits = sum(result["host_waits"].values())
    return {
        **result,
        "says": f"batch {size}: {result['images_per_second']:.0f} images/s, ratio to the bare "
        + ", ".join(f"{w} {result[f'ratio_to_{w}']:.2f}" for w in networks)
        + f", {waits} waits",
    }


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEG files of smooth noise as large as photographs of that size (a bit a pixel), and 16-bit depth; 32 of them,
    copied."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(), (folder / "depth").mkdir()
    for k in range(count):
        names = folder / "images" / f"{k:05}.jpg", folder / "depth" / f"{k:05}.png"
        if k < 32:
            coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
            picture = coarse.resize(size[::-1], Image.Resampling.BICUBIC)
            noisy = np.asarray(picture, np.int16) + rng.integers(-18, 19, (*size, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(names[0], quality=80)
            write_depth_png(names[1], np.asarray(picture.convert("F")) / 50 + 1)
        else:
            for name in names:
                shutil.copy(name.with_stem(f"{k % 32:05}"), name)


def data_wait(views: str) -> Callable:
    def measure(device: str, tiny: bool, options: object) -> dict:
        """PixDepth's data from JPEG files of 375 x 500 and depth PNGs, by a worker for each core but one, and its
        steps.

        Each by itself and long after the start, since a short run lives on what the workers have ready: the slower of
        the two is the run's
        rate, and what the loader lacks is what a step waits.
        """
        count, batch, crop, encoder = (8, 4, 64, "resnet18") if tiny else (2048, 256, 224, "resnet34")
        workers = 1 if tiny else max(1, (os.cpu_count() or 2) - 1)
        config = configuration("pixdepth", crop, batch, encoder, method_options={"out": 252}, views=views)
        _, _, step = stepper(config, device)
        with tempfile.TemporaryDirectory() as folder:
            write_photographs(Path(folder), count, (96, 128) if tiny else (375, 500))
            size = np.mean([p.stat().st_size for p in Path(folder, "images").iterdir()])
            make = PairViews(crop, config.scale)
            make = on_device(make, config.method) if views == "device" else make
            samples = Samples(open_data("folder", root=f"{folder}/images", depth=f"{folder}/depth"), make.smallest, 0)
            keys = StepBatches(count, batch, 0, 0, 6 * workers)  # 4 of each worker are made ahead
            loader = iter(step_loader(samples, make, keys, workers, pin_memory=device == "cuda"))
            for _ in range(4 * workers):
                ready = next(loader)
            began = time.perf_counter()
            for ready in loader:
                ready = ready.to(device)
            loaded = 2 * workers * batch / (time.perf_counter() - began)
        stepped = batch / seconds(lambda: step(ready), device, 8, 3 if device == "cuda" else 1)
        wait = max(0.0, 1 - loaded / stepped)
        return {
            "loaded_per_second": loaded,
            "stepped_per_second": stepped,
            "data_wait_share": wait,
            "loaded_per_second_and_worker": loaded / workers,
            "workers": workers,
            "batch": batch,
            "mean_jpeg_kib": round(size / 1024),
            "says": f"{loaded:.0f} images/s from disk by {workers} workers, {stepped:.0f} trained: waits {wait:.0%}",
        }

    return measure


STAGES = {
    **{f"throughput-{name}": (method_throughput(name), 75) for name in PAPER},
    **{f"data-{views}": (data_wait(views), 100) for views in ("cpu", "device")},
}

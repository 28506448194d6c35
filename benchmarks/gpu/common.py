"""What the stages share: batches of every method at a size, and a clock for a device."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from dense_ssl.data.catalog import open_data
from dense_ssl.data.device_views import on_device
from dense_ssl.data.loading import Batch, Samples, StepBatches, step_loader
from dense_ssl.data.video import Triplet
from dense_ssl.methods.catalog import build_method
from dense_ssl.models.encoders import build_encoder
from dense_ssl.training.configuration import Launch, Pretrain, parse


class WithIds:
    "Rooms whose classes are their auxiliary labels and whose objects are their regions."

    def __init__(self, dataset):
        self.dataset, self.name, self.version, self.classes, self.split = (
            dataset,
            "rooms",
            dataset.version,
            dataset.classes,
            dataset.split,
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int):
        sample = self.dataset[i]
        return replace(sample, auxiliary=sample.labels.where(sample.labels != 255, -1), regions=sample.instances)


class Triplets(WithIds):
    "A room between two others, as three frames of a video."

    def __getitem__(self, i: int):
        before, now, after = (self.dataset[(i + k) % len(self)] for k in (-1, 0, 1))
        return Triplet(now.image, now.name, K=now.K, neighbours=torch.stack([before.image, after.image]))


def images(config: Pretrain, count: int, size: tuple[int, int]):
    "A data set for a run: `count` rooms, with what its method needs; a coarse cloud where voxels are coarse."
    if config.method == "monodepth":
        return Triplets(open_data("room", count=count, size=size))
    if config.method_options.get("posed"):
        return open_data("room_pairs", count=count, size=size, voxel=config.method_options["voxel"])
    return WithIds(open_data("room", count=count, size=size))


def configuration(method: str, crop: int | tuple[int, int], batch: int, encoder: str = "resnet18", **more) -> Pretrain:
    "Settings of a run of `method`, as small as the tests' unless `more` says otherwise."
    return parse(
        Pretrain,
        {
            "data": {"name": "room"},
            "method": method,
            "encoder": encoder,
            "crop": crop,
            "batch_size": batch,
            "steps": 20,
            "lr": 0.05,
            "scale": (0.2, 1.0),
            **more,
        },
    )


def build(config: Pretrain):
    "The method of a configuration, with the same weights every time."
    torch.manual_seed(config.seed)
    return build_method(config.method, build_encoder(config.encoder, config.output_stride), **config.method_options)


def batches(config: Pretrain, method, dataset, steps: int, workers: int = 0) -> list[Batch]:
    "The first batches of a run."
    make = method.inputs(config.crop, config.scale)
    make = on_device(make, config.method) if config.views == "device" else make
    samples = Samples(dataset, make.smallest, config.seed)
    return list(
        step_loader(samples, make, StepBatches(len(dataset), config.batch_size, config.seed, 0, steps), workers)
    )


def launch(device: str) -> Launch:
    return Launch(accelerator=device, tensorboard=False, progress=False)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], device: str, rounds: int = 10, warm: int = 3) -> float:
    "Median seconds of a call."
    took = []
    for _ in range(warm + rounds):
        wait(device)
        began = time.perf_counter()
        function()
        wait(device)
        took.append(time.perf_counter() - began)
    return statistics.median(took[warm:])


def peak_mib(function: Callable[[], object], device: str) -> float | None:
    "Extra memory at the peak of a call on a GPU."
    if device != "cuda":
        return None
    function()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)

"""Copy-paste of one group, 8 images of 384x768 to 16 scenes with about 4.8k pastes, against a plain version, and its
growth with the image.

    python benchmarks/copy_paste.py [--rounds 5] [--segments 155] [--out benchmarks/copy_paste.cpu.json]

One thread. The plain version does the same work with Pillow, torchvision and numpy calls on each region's box, every
step a call of its own;
it and the compiled one take turns on the same samples, and the ratio is the median over rounds. Seconds are of the
clock and, since other
programs may run on the machine, of the processor. Then the same images at 2x and 4x the pixels, and what follows in a
loader worker.
Prints JSON; `--out FILE` keeps it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as T
from PIL import Image
from skimage.segmentation import slic

from dense_ssl.core import environment, write_json
from dense_ssl.data.worlds.street import StreetWorld
from dense_ssl.data.views import Sample, sample_generator
from dense_ssl.geometry.depth import resize_depth
from dense_ssl.positives.copy_paste import CopyPaste, copy_paste
from dense_ssl.positives.scenes import Synthesize, make_views, sample_pixels, sample_regions


def street_samples(count: int, size: tuple[int, int], segments: int) -> list[Sample]:
    """Street images; regions: things of the ground truth cut along a SLIC of `segments`, about 200 of them large
    enough in an image."""
    world, samples = StreetWorld(count=4 * count, size=size), []
    for k in range(count):
        sample = world[4 * k]
        pieces = slic(
            sample.image.permute(1, 2, 0).numpy(), n_segments=segments, compactness=10, sigma=1, start_label=0
        )
        things = pieces * 10**6 + sample.labels.numpy() * 1000 + sample.instances.numpy()
        samples.append(
            replace(sample, regions=torch.from_numpy(np.unique(things, return_inverse=True)[1].astype(np.int64)))
        )
    return samples


def enlarge(sample: Sample, size: tuple[int, int]) -> Sample:
    "The same sample with more pixels."
    image = T.functional.resize(sample.image, list(size), antialias=True)
    regions = F.interpolate(sample.regions[None, None].double(), size, mode="nearest-exact")[0, 0].long()
    return replace(sample, image=image, depth=resize_depth(sample.depth, size), regions=regions)


def plain_copy_paste(samples: list[Sample], config: CopyPaste, generator: torch.Generator) -> int:
    "Algorithm 2 with library calls; returns the number of pastes."
    H, W = samples[0].regions.shape
    jitter, grey, blur = T.ColorJitter(0.5, 0.5, 0.5, 0.2), T.RandomGrayscale(1.0), T.GaussianBlur(9, (0.1, 2.0))
    cut = []
    for sample in samples:
        disparity = torch.where(sample.depth.isfinite(), 1 / sample.depth, 0)
        for i in sample.regions.unique():
            rows, columns = (sample.regions == i).nonzero(as_tuple=True)
            top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
            if bottom - top >= config.min_height and right - left >= config.min_width:
                box = (slice(top, bottom), slice(left, right))
                cut.append((sample.image[:, *box], disparity[box], (sample.regions == i)[box], int(top)))
    pastes = 0
    for e in config.expectation:
        for sample in samples:
            image, disparity = (
                sample.image.permute(1, 2, 0).numpy().astype(np.float32),
                torch.where(sample.depth.isfinite(), 1 / sample.depth, 0).numpy(),
            )
            for r in torch.randperm(len(cut), generator=generator)[: round(e * len(cut) / len(samples))].tolist():
                patch, near, mask, top = cut[r]
                u = torch.rand(8, generator=generator).tolist()
                s = 1 / (0.5 + 4.5 * u[0])
                size = max(1, round(patch.shape[2] * s)), max(1, round(patch.shape[1] * s))
                for p, change in ((0.8, jitter), (0.1, grey), (0.2, blur)):
                    patch = change(patch) if u.pop() < p else patch
                patch = np.asarray(
                    Image.fromarray(patch.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BILINEAR), np.float32
                )
                near, mask = (
                    np.asarray(Image.fromarray(m).resize(size, Image.Resampling.NEAREST))
                    for m in (near.numpy(), mask.numpy())
                )
                if u.pop() < 0.5:
                    patch, near, mask = patch[:, ::-1], near[:, ::-1], mask[:, ::-1]
                y, x = round((top - H / 2) * s + H / 2 + 16 * (2 * u.pop() - 1)), round(u.pop() * W - size[0] / 2)
                t, b, left, right = max(y, 0), min(y + size[1], H), max(x, 0), min(x + size[0], W)
                pastes += 1
                if t >= b or left >= right:
                    continue
                part, there = (slice(t - y, b - y), slice(left - x, right - x)), (slice(t, b), slice(left, right))
                shown = mask[part] & (near[part] * s > disparity[there])
                soft = (
                    T.functional.gaussian_blur(torch.from_numpy(shown)[None].float(), [3, 3])[0].numpy()
                    if min(shown.shape) > 1
                    else shown * 1.0
                )
                image[there] = soft[..., None] * patch[part] + (1 - soft[..., None]) * image[there]
                disparity[there] = soft * near[part] * s + (1 - soft) * disparity[there]
    return pastes


def timed(function: Callable[[int], object], rounds: int) -> tuple[list[float], list[float]]:
    "Seconds of the clock and of the processor of each round, after one to warm up."
    clock, processor = [], []
    for k in range(rounds + 1):
        began, used = time.perf_counter(), time.process_time()
        function(k)
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return clock[1:], processor[1:]


def seconds(values: tuple[list[float], list[float]]) -> dict[str, float]:
    return {
        "seconds": round(statistics.median(values[0]), 3),
        "processor_seconds": round(statistics.median(values[1]), 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--segments", type=int, default=155)
    parser.add_argument("--out")
    a = parser.parse_args()
    torch.set_num_threads(1)
    config, size = CopyPaste(), (384, 768)
    samples = street_samples(8, size, a.segments)
    scenes = copy_paste(samples, config, sample_generator(0))
    result = {"images": 8, "size": size, "pastes": sum(len(s.source) - 1 for s in scenes), "rounds": a.rounds}
    ours, plain = ([], []), ([], [])
    for k in range(a.rounds):
        for kept, function in ((ours, copy_paste), (plain, plain_copy_paste)):
            for column, value in zip(
                kept,
                timed(lambda i, f=function, k=k: f(samples, config, sample_generator(k, i)) if i else None, 1),
                strict=True,
            ):
                column.extend(value)
    result |= {
        "copy_paste": seconds(ours),
        "plain": seconds(plain),
        "ratio_to_plain": round(statistics.median(x / y for x, y in zip(ours[1], plain[1], strict=True)), 4),
        "growth": [],
    }
    for times, large in ((1, size), (2, (543, 1086)), (4, (768, 1536))):
        larger = samples if times == 1 else [enlarge(s, large) for s in samples]
        made = copy_paste(larger, config, sample_generator(0))
        result["growth"].append(
            {
                "pixels": times,
                "size": large,
                "pastes": sum(len(s.source) - 1 for s in made),
                **seconds(timed(lambda k, g=larger: copy_paste(g, config, sample_generator(k)), a.rounds)),
            }
        )
    views, cells = make_views(scenes, samples, size, sample_generator(0)), 16 * 96 * 192
    make = Synthesize(config, size)
    for name, function in {
        "views": lambda k: make_views(scenes, samples, size, sample_generator(k)),
        "sample_pixels": lambda k: sample_pixels(views, cells // 2, sample_generator(k)),
        "sample_regions": lambda k: sample_regions(views, cells // 2, sample_generator(k)),
        "synthesize": lambda k: make(samples, [sample_generator(k, i) for i in range(8)]),
    }.items():
        result[name] = seconds(timed(function, a.rounds))
    result["environment"] = {k: v for k, v in environment().items() if k != "platform"}
    print(json.dumps(result, indent=1))
    if a.out:
        write_json(a.out, result)

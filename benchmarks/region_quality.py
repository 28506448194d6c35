"""How good region proposals are, by CPCDR's two measures (supplement B), on the street world and on recorded street
video.

    python benchmarks/region_quality.py [--scenes 24] [--large 4] [--disparity TREE] [--out
    benchmarks/region_quality.json]

Ground-truth masks are the connected pieces of one class and instance. `query`: the mean over masks of the best IoU
that any region has
with it. `bilateral`: the sum of IoUs under the optimal one-to-one match, divided by the number of regions or of masks,
whichever is
larger. Each is taken over all masks and over those of at least `--pixels` (100 at 192x384; in proportion elsewhere); a
number is the mean over
scenes.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dense_ssl.core import data_root, environment, read_json, write_json
from dense_ssl.data.folders import ImageFolder
from dense_ssl.data.proposals import propose, truth_regions
from dense_ssl.data.worlds.street import StreetWorld
from dense_ssl.data.views import Sample
from dense_ssl.evaluation.metrics import region_bilateral_miou, region_query_miou
from dense_ssl.geometry.camera import backproject, read_intrinsics
from dense_ssl.geometry.regions import (
    RegionConfig,
    boundary_weights,
    group_superpixels,
    metric_depth,
    superpixel_geometry,
)
from dense_ssl.geometry.superpixels import adjacency, superpixels

CITYSCAPES = {"width": 2048, "height": 1024, "K": [[2262.52, 0, 1096.98], [0, 2265.30, 513.14], [0, 0, 1]]}
PAIRS = {
    "N/2, 1/W": {},
    "N/2, 1-W": {"closeness": "1-W"},
    "none, 1/W": {"modules": "default"},
    "none, 1-W": {"modules": "default", "closeness": "1-W"},
}
CHANGES = {"fixing any": {"fixing": "any"}}  # of all four pairs; of the first and the last:
MORE = {
    "mean height": {"support_height": "mean"},
    "no D_sup": {"w_support": 0.0},
    "not standardised": {"standardize": False},
    "standardised normals": {"normals": "standardized"},
    "Infomap's own tuning": {"tuning": 0},
    "a quarter of the superpixels": {"count": 2500},
}
BASE = {
    "modules": "half",
    "closeness": "1/W",
    "fixing": "average",
    "support_height": "lower",
    "tuning": 1,
    "count": 10000,
    "powers": False,
}
OURS = {
    **PAIRS,
    "none, 1/W, powers of two": {"modules": "default", "powers": True},
    "10, 1/W": {"modules": 10},
    "10, 1-W": {"modules": 10, "closeness": "1-W"},
    **{f"{pair}, {change}": {**PAIRS[pair], **CHANGES[change]} for change in CHANGES for pair in PAIRS},
    **{f"{pair}, {change}": {**PAIRS[pair], **MORE[change]} for change in MORE for pair in ("N/2, 1/W", "none, 1-W")},
}
OTHERS = {
    **{f"slic, {n}": ("slic", {"count": n}) for n in (25, 100, 400)},
    **{f"felzenszwalb, {s:g}": ("felzenszwalb", {"scale": s}) for s in (50.0, 200.0, 800.0)},
    **{f"edges, {t:g}": ("edges", {"threshold": t}) for t in (4.0, 6.0, 8.0)},
}


def measures(regions: np.ndarray, truth: np.ndarray, pixels: float) -> dict[str, float]:
    "Both measures of one scene, over all masks and over the large ones."
    regions, sizes = torch.as_tensor(regions).long(), np.bincount(truth[truth >= 0])
    out = {"regions": int(regions.max()) + 1, "large regions": int((regions.flatten().bincount() >= pixels).sum())}
    for name, kept in (("", np.arange(len(sizes))), ("large ", np.flatnonzero(sizes >= pixels))):
        masks = [torch.from_numpy(truth == k) for k in kept]
        out |= {
            f"{name}query": region_query_miou(regions, masks),
            f"{name}bilateral": region_bilateral_miou(regions, masks),
        }
    return out


def street_scenes(count: int, size: tuple[int, int]) -> Iterator[Sample]:
    "One frame of each of `count` drives."
    world = StreetWorld("regions", count=count, size=size, views=1)
    yield from (world[i] for i in range(count))


def video_scenes(disparity: Path, every: int) -> Iterator[Sample]:
    "Every `every`-th frame of street_video; labels and instances are a network's predictions."
    root = data_root() / "street_video"
    images = ImageFolder(root / "images", depth=disparity, depth_kind="disparity")
    for i in range(0, len(images), every):
        sample = images[i]
        name = Path(images.names[i]).with_suffix(".png")
        sample.labels, sample.instances = (
            torch.from_numpy(np.array(Image.open(root / tree / name)).astype(np.int64))
            for tree in ("labels", "instances")
        )
        sample.K = read_intrinsics(CITYSCAPES, tuple(sample.labels.shape))
        yield sample


class Ours:
    "The coherent regions of one sample under many options; superpixels, of which there are few kinds, are made once."

    def __init__(self, sample: Sample):
        self.sample, self.image = sample, sample.image.permute(1, 2, 0).contiguous().numpy()
        self.labels: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def regions(self, options: dict) -> np.ndarray:
        config = RegionConfig(**{**BASE, **options})
        if config.count not in self.labels:
            labels = superpixels(self.image, config.count, config.compactness, config.sigma)
            self.labels[config.count] = labels, adjacency(labels)
        labels, edges = self.labels[config.count]
        geometry = superpixel_geometry(
            labels, backproject(metric_depth(self.sample.depth, self.sample.depth_kind, config), self.sample.K), config
        )
        weight = boundary_weights(geometry, edges, config).weight
        return group_superpixels(len(geometry), edges, weight, config)[-1].community[labels]


def evaluate(scenes: Iterator[Sample], ours: dict, others: dict, pixels: int) -> dict:
    "Mean and standard deviation over scenes of every measure, for every proposal."
    rows: dict[str, list[dict]] = {}
    number = 0
    for number, sample in enumerate(scenes, 1):  # noqa: B007
        began, size = time.perf_counter(), sample.labels.shape
        share = size[0] * size[1] / (192 * 384)
        truth = truth_regions(sample.labels, sample.instances).numpy()
        mine = Ours(sample)
        for name, options in ours.items():
            rows.setdefault(f"ours: {name}", []).append(measures(mine.regions(options), truth, pixels * share))
        for name, (kind, options) in others.items():
            rows.setdefault(name, []).append(measures(propose(sample, kind, **options).numpy(), truth, pixels * share))
        print(f"{sample.name}: {truth.max() + 1} masks, {time.perf_counter() - began:.1f} s", flush=True)
    return {
        "scenes": number,
        "rows": {
            name: {
                key: [
                    round(float(np.mean([f[key] for f in found])), 4),
                    round(float(np.std([f[key] for f in found])), 4),
                ]
                for key in found[0]
            }
            for name, found in rows.items()
        },
    }


def table(result: dict) -> str:
    "The rows as text."
    keys = list(next(iter(result["rows"].values())))
    lines = [f"{'':32s}" + "".join(f"{k:>18s}" for k in keys)]
    return "\n".join(
        lines
        + [
            f"{name:32s}" + "".join(f"{row[k][0]:12.3f} ±{row[k][1]:4.2f}" for k in keys)
            for name, row in result["rows"].items()
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24, help="street scenes at 192x384")
    parser.add_argument("--large", type=int, default=4, help="street scenes at 384x768")
    parser.add_argument("--pixels", type=int, default=100, help="size from which a mask counts as large, at 192x384")
    parser.add_argument("--disparity", help="tree of disparity for street_video, e.g. Monodepth2's")
    parser.add_argument("--every", type=int, default=10, help="of street_video, every so many frames")
    parser.add_argument("--out")
    a = parser.parse_args()
    result = read_json(a.out) if a.out and not a.scenes else {}  # --scenes 0: only street_video is made anew
    if a.scenes:
        result["street 192x384"] = evaluate(street_scenes(a.scenes, (192, 384)), OURS, OTHERS, a.pixels)
    if a.scenes and a.large:
        result["street 384x768"] = evaluate(street_scenes(a.large, (384, 768)), OURS, OTHERS, a.pixels)
    if a.disparity:
        result["street_video, labels and instances predicted by a network"] = evaluate(
            video_scenes(Path(a.disparity), a.every), OURS, OTHERS, a.pixels
        )
    else:
        print("skipped: street_video needs --disparity, a tree of disparity maps")
    for name, found in ((n, f) for n, f in result.items() if isinstance(f, dict) and "rows" in f):
        print(f"\n{name}, {found['scenes']} scenes\n{table(found)}")
    result |= {
        "large mask": f"{a.pixels} pixels at 192x384, in proportion elsewhere",
        "world": "street version 1, split 'regions'",
        "environment": {k: v for k, v in environment().items() if k != "platform"},
    }
    if a.out:
        write_json(a.out, result)
        print(json.dumps({"written": a.out}))

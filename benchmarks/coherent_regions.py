"""Coherent regions of an image against the SLIC call alone, and how the cost grows with the image.

    python benchmarks/coherent_regions.py [--rounds 7] [--out benchmarks/coherent_regions.cpu.json]

Images of the street world with 1x, 2x and 4x the pixels (192x384, 272x544, 384x768) and as many superpixels in
proportion (10000 at
384x768). In every round the bare `skimage.segmentation.slic` call and the whole of `coherent_regions` (SLIC included)
take turns on each image
in one process, so that whatever else the machine does meets both. A ratio is the median over images and rounds of the
ratio within a round.
`parts` splits the time of the largest size.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from skimage.segmentation import slic

from dense_ssl.core import environment, write_json
from dense_ssl.data.worlds.street import StreetWorld
from dense_ssl.evaluation.metrics import hardware
from dense_ssl.geometry.camera import backproject, normals
from dense_ssl.geometry.regions import (
    RegionConfig,
    boundary_weights,
    coherent_regions,
    group_superpixels,
    superpixel_geometry,
)
from dense_ssl.geometry.superpixels import adjacency, superpixels

SIZES = {"1x": ((192, 384), 2500), "2x": ((272, 544), 5016), "4x": ((384, 768), 10000)}


def timed(function: Callable, *arguments: Any, **named: Any) -> tuple[float, Any]:
    "Seconds, and what came out."
    began = time.perf_counter()
    out = function(*arguments, **named)
    return time.perf_counter() - began, out


def ratios(images: int, rounds: int) -> dict:
    "Seconds of both and their ratio, per size; the sizes take turns too."
    scenes = {
        name: [StreetWorld("regions", count=images, size=size, views=1)[i] for i in range(images)]
        for name, (size, _) in SIZES.items()
    }
    found: dict[str, list] = {name: [] for name in SIZES}
    for k in range(rounds + 1):
        for i in range(images):
            for name, (_, count) in SIZES.items():
                sample = scenes[name][i]
                picture = sample.image.permute(1, 2, 0).contiguous().numpy()
                alone, _ = timed(slic, picture, n_segments=count, compactness=10.0, sigma=1.0, start_label=0)
                whole, regions = timed(coherent_regions, picture, sample.depth, sample.K, RegionConfig(count=count))
                if k:  # the first round warms up
                    found[name].append((alone, whole, whole / alone, int(regions.max()) + 1))
    return {
        name: {
            "size": list(SIZES[name][0]),
            "superpixels asked for": SIZES[name][1],
            "slic seconds": round(statistics.median(r[0] for r in rows), 4),
            "regions seconds": round(statistics.median(r[1] for r in rows), 4),
            "ratio": round(statistics.median(r[2] for r in rows), 3),
            "regions": round(statistics.mean(r[3] for r in rows)),
        }
        for name, rows in found.items()
    }


def parts(rounds: int) -> dict[str, float]:
    "Median seconds of each step at 384x768."
    sample, config = StreetWorld("regions", count=1, size=(384, 768), views=1)[0], RegionConfig()
    picture = sample.image.permute(1, 2, 0).contiguous().numpy()
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        t, labels = timed(superpixels, picture)
        found.setdefault("superpixels", []).append(t)
        t, points = timed(backproject, sample.depth, sample.K)
        found.setdefault("backproject", []).append(t)
        found.setdefault("normals", []).append(timed(normals, points)[0])
        t, geometry = timed(superpixel_geometry, labels, points, config)
        found.setdefault("superpixel_geometry, normals included", []).append(t)
        t, edges = timed(adjacency, labels)
        found.setdefault("adjacency", []).append(t)
        t, boundaries = timed(boundary_weights, geometry, edges, config)
        found.setdefault("boundary_weights", []).append(t)
        found.setdefault("group_superpixels (Infomap)", []).append(
            timed(group_superpixels, len(geometry), edges, boundaries.weight, config)[0]
        )
    return {name: round(statistics.median(values), 4) for name, values in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--out")
    a = parser.parse_args()
    torch.set_num_threads(1)
    sizes = ratios(a.images, a.rounds)
    base = sizes["1x"]["regions seconds"]
    result = {
        "sizes": sizes,
        "growth of the cost at 1x, 2x, 4x pixels": [round(s["regions seconds"] / base, 2) for s in sizes.values()],
        "parts, seconds at 384x768": parts(a.rounds),
        "rounds": a.rounds,
        "images": a.images,
        "config": RegionConfig().model_dump(),
        "environment": {k: v for k, v in environment().items() if k != "platform"},
        "numpy": np.__version__,
        "device": hardware(),
    }
    print(json.dumps(result, indent=1))
    if a.out:
        write_json(a.out, result)

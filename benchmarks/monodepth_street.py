"""Monodepth2 on the street world: depth learned from video alone, against guesses that know the true depth of the
training streets.

    OMP_NUM_THREADS=1 python benchmarks/monodepth_street.py [--folder RUN] [--steps 1200] [--device cuda] [--out FILE]

Trains on short videos of the train split and is measured on frames of the test split, which shares no street with it.
Every map, the
guesses' too, is aligned by its ratio of medians; truth up to 80 m. The guesses, fitted to the train split's true depth:
one constant; flat ground under the camera with a wall behind (the horizon's row and the wall's distance fitted); and
each
row's median depth. Killed and started again with the same --folder, it goes on. Prints JSON; `--out` keeps it.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dense_ssl.core import environment, read_json, write_json
from dense_ssl.data.worlds.street import StreetWorld
from dense_ssl.evaluation.metrics import depth_errors
from dense_ssl.methods.monodepth import monodepth, video_recipe
from dense_ssl.training.configuration import Launch, Pretrain, parse
from dense_ssl.training.launch import run_pretrain

SIZE = (96, 192)


def write_videos(folder: Path, drives: int, frames: int) -> Path:
    "One video of each drive of the train split, and its camera; drives that are there stay."
    world = StreetWorld("train", drives, SIZE, views=1)
    write_json(folder / "camera.json", {"width": SIZE[1], "height": SIZE[0], "K": world.K.tolist()})
    for drive in range(drives):
        if not (video := folder / f"{drive:04d}").is_dir():
            half = video.with_name(f".{video.name}")
            half.mkdir(exist_ok=True)
            for t, frame in enumerate(world.sequence(drive, frames)):
                Image.fromarray(frame.image.permute(1, 2, 0).numpy()).save(half / f"{t:03d}.png")
            half.rename(video)
    return folder


def stills(split: str, count: int) -> list:
    "One frame of each drive, a second after those that videos begin with."
    world = StreetWorld(split, count, SIZE, views=1)
    return [world.frame(drive, 10) for drive in range(count)]


def score(maps: list[Tensor], samples: list) -> dict[str, float]:
    "Mean over frames of the aligned errors."
    found = [depth_errors(depth, sample.depth) for depth, sample in zip(maps, samples, strict=True)]
    return {key: round(statistics.mean(errors[key] for errors in found), 4) for key in found[0]}


def ground_plane(horizon: float, wall: float, K: Tensor) -> Tensor:
    """Depth of flat ground 1.6 m (the world's mean) under a level camera, cut off by a wall; the wall alone above the
    horizon's row."""
    below = (torch.arange(SIZE[0], dtype=torch.float32) - horizon).clamp_min(1e-6)
    return (1.6 * K[1, 1] / below).clamp_max(wall)[:, None].expand(SIZE)


def guesses(train: list) -> tuple[dict[str, Tensor], dict]:
    "The maps of the guesses, and what was fitted."
    K, depth = train[0].K, torch.stack([sample.depth for sample in train])
    depth = depth.masked_fill(depth > 80, torch.nan)
    grid = [(horizon, wall) for horizon in np.arange(0, 57, 3.0) for wall in (8, 10, 12, 15, 20, 25, 30, 40, 60, 80)]
    best = min(grid, key=lambda pair: score([ground_plane(*pair, K)] * len(train), train)["abs_rel"])
    rows = depth.movedim(1, 0).flatten(1).nanmedian(1).values
    rows = torch.where(rows.isnan(), rows.nan_to_num(0).max(), rows)  # rows that are always sky
    maps = {
        "constant": torch.ones(SIZE),
        "ground plane": ground_plane(*best, K),
        "row medians": rows[:, None].expand(SIZE),
    }
    return maps, {"horizon_row": float(best[0]), "wall_m": float(best[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="run folder; default: a temporary one")
    parser.add_argument("--drives", type=int, default=400)
    parser.add_argument("--frames", type=int, default=7)
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 128), help="height and width of training")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--spacing", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out")
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="monodepth_street_"))
    images = write_videos(folder / f"videos-{args.drives}-{args.frames}", args.drives, args.frames)
    recipe = video_recipe(
        images,
        str(images / "camera.json"),
        args.size,
        args.spacing,
        steps=args.steps,
        batch_size=args.batch,
        lr=args.lr,
        precision=args.precision,
    )
    launch = Launch(accelerator=args.device, tensorboard=False, checkpoint_seconds=60)
    run = run_pretrain(parse(Pretrain, recipe), launch, runs=folder, show=lambda line: print(line, file=sys.stderr))
    done = {k: v for k, v in read_json(run / "done.json").items() if k != "env"}
    predict, test = monodepth(run, args.device), stills("test", args.tests)
    maps, fitted = guesses(stills("train", args.tests))
    result = {
        "monodepth": score([1 / predict(sample) for sample in test], test),
        **{name: score([depth] * len(test), test) for name, depth in maps.items()},
    }
    report = {
        "errors": result,
        "fitted": fitted,
        "training": {**vars(args), **done},
        "test_frames": len(test),
        "frame_size": SIZE,
        "world": f"street {StreetWorld.version}",
        "env": environment(),
    }
    print(json.dumps(report, indent=1, default=str))
    if args.out:
        report["training"] = {k: v for k, v in report["training"].items() if k not in ("folder", "out")}
        write_json(args.out, json.loads(json.dumps(report, default=str)))


if __name__ == "__main__":
    main()

"""PixDepth's step against PixPro's and PixContrast's, and how long a step waits for its data.

    python benchmarks/pixdepth_step.py [--crop 112] [--batch 16] [--rounds 10] [--device cuda]

The methods take turns, step by step, in one process on the same batches, so that whatever else the machine does meets
all of
them; the ratio is the median over rounds of the ratio within a round. The second part trains from JPEG files with
loader workers.
Prints JSON; `--out FILE` keeps it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from dense_ssl.core import environment, read_json, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.data.loading import PairViews, Samples, StepBatches, step_loader
from dense_ssl.geometry.depth import write_depth_png
from dense_ssl.methods.catalog import build_method
from dense_ssl.models.encoders import build_encoder
from dense_ssl.training.configuration import Launch, Pretrain, parse
from dense_ssl.training.launch import run_pretrain


def step_ratios(crop: int, batch: int, rounds: int, encoder: str, device: str) -> dict:
    "Median seconds of a step, and median ratio to PixPro's step of the same round."
    room = open_data("room", count=2 * batch, size=(crop + crop // 4, crop + crop // 2))
    one = next(
        iter(step_loader(Samples(room, (crop, crop), 0), PairViews(crop), StepBatches(len(room), batch, 0, 0, 1)))
    ).to(device)
    methods, optimizers, seconds = {}, {}, {}
    for name in ("pixpro", "pixcontrast", "pixdepth"):
        torch.manual_seed(0)
        methods[name] = build_method(name, build_encoder(encoder), out=252).to(device)
        optimizers[name] = torch.optim.SGD(
            (p for p in methods[name].parameters() if p.requires_grad), 0.01, momentum=0.9
        )
        seconds[name] = []
    for k in range(rounds + 2):
        for name in [*methods][k % 3 :] + [*methods][: k % 3]:  # each comes first, second and last equally often
            method, began = methods[name], time.perf_counter()
            loss, _ = method(*one.inputs)
            loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            method.after_step(0, 100)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    seconds = {name: values[2:] for name, values in seconds.items()}  # two rounds to warm up
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, seconds["pixpro"], strict=True))
        for name, values in seconds.items()
    }
    return {
        "step_seconds": {name: round(statistics.median(v), 4) for name, v in seconds.items()},
        "ratio_to_pixpro": {name: round(r, 4) for name, r in ratios.items()},
        "crop": crop,
        "batch": batch,
        "encoder": encoder,
        "rounds": rounds,
    }


def data_wait(crop: int, batch: int, steps: int, workers: int, encoder: str) -> dict:
    """The share of a step that waits for data: JPEG images of 320x240 and 16-bit depth from disk, loaded by `workers`
    processes."""
    room = open_data("room", count=64, size=(240, 320))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "images").mkdir()
        Path(folder, "depth").mkdir()
        for k in range(len(room)):
            sample = room[k]
            Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(Path(folder, "images", f"{k}.jpg"), quality=90)
            write_depth_png(Path(folder, "depth", f"{k}.png"), sample.depth)
        config = parse(
            Pretrain,
            {
                "data": {"name": "folder", "root": f"{folder}/images", "options": {"depth": f"{folder}/depth"}},
                "method": "pixdepth",
                "encoder": encoder,
                "crop": crop,
                "batch_size": batch,
                "steps": steps,
                "lr": 0.01,
                "method_options": {"out": 252},
            },
        )
        run = run_pretrain(config, Launch(workers=workers, tensorboard=False), runs=Path(folder, "runs"))
        done = read_json(run / "done.json")
    return {
        "data_wait_share": done["data_wait_share"],
        "step_seconds": done["step_seconds"],
        "workers": workers,
        "steps": steps,
        "crop": crop,
        "batch": batch,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=112)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out")
    a = parser.parse_args()
    result = {
        "step": step_ratios(a.crop, a.batch, a.rounds, a.encoder, a.device),
        "data": data_wait(a.crop, a.batch, a.steps, a.workers, a.encoder),
        "environment": {k: v for k, v in environment().items() if k != "platform"},
        "device": torch.cuda.get_device_name() if a.device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
    }
    print(json.dumps(result, indent=1))
    if a.out:
        write_json(a.out, result)

"""Every source of positives with every objective on the room world, very short: a small network, 60 steps of 8 images
of 64 pixels.

    python benchmarks/grid_room.py --seeds 0        # rows and settings of beyond.G1, profile quick, but for those below

One process, no notebooks. Rows on auxiliary labels have a stage of their own and are left to `python -m
dense_ssl.experiments.reproduce`.
What is there already (--out) is not run again.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from dense_ssl.core import environment, read_json, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.evaluation.coherence import object_coherence
from dense_ssl.evaluation.probe import linear_probe
from dense_ssl.experiments.plan import plan
from dense_ssl.models.encoders import load_encoder
from dense_ssl.training.configuration import Launch, Pretrain
from dense_ssl.training.loop import pretrain

NETWORK = {"encoder": "timm/test_resnet"}
BUDGET = {"crop": 64, "batch_size": 8, "steps": 60, "warmup": 6}
SIZE, TRAIN, TEST = (96, 128), 64, 48
WATCHED = ("loss", "positives", "anchors_without_positives", "spread", "effective_rank", "used_prototypes")


def measure(job, folder: Path, train, test) -> dict:
    "Train a row, evaluate it, and what the training's first and last lines said."
    settings = job.stages["pretrain"].identity
    scratch = settings["method"] == "scratch"
    config = Pretrain(**{**settings, **NETWORK, **({} if scratch else BUDGET)})
    pretrain(config, folder, Launch(threads=1, tensorboard=False, progress=False))
    encoder = load_encoder(folder).eval()
    coherence, probe = (
        object_coherence(encoder, test, SIZE, progress=False),
        linear_probe(encoder, train, test, SIZE, progress=False),
    )
    lines = [] if scratch else [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {
        when: {k: round(line[k], 4) for k in WATCHED if k in line}
        for when, line in zip(("first", "last"), lines[:1] + lines[-1:], strict=False)
    }
    return {
        "linear_probe": round(probe["miou"], 4),
        "coherence_same": round(coherence["object"]["auc"], 4),
        "coherence_depth": round(coherence["depth"]["auc"], 4),
        **logged,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--rows", nargs="*", help="ids; default: all but those on auxiliary labels")
    parser.add_argument("--out", default=Path(__file__).with_suffix(".json"), type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (open_data("room", split, size=SIZE, count=n) for split, n in (("train", TRAIN), ("test", TEST)))
    rows = read_json(given.out)["rows"] if given.out.is_file() else {}
    for job in plan("quick", {"beyond": {"G1": given.rows or "all"}}, seeds=given.seeds):
        name, seed, began = job.row["label"], str(job.seed), time.perf_counter()
        if "labels" in job.stages or seed in rows.get(name, {}):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.setdefault(name, {})[seed] = measure(job, Path(folder), train, test)
        print(f"{name:26s} seed {seed}: {rows[name][seed]}, {time.perf_counter() - began:.0f} s", flush=True)
        versions = {k: v for k, v in environment().items() if k != "platform"}
        write_json(
            given.out,
            {
                **NETWORK,
                **BUDGET,
                "size": SIZE,
                "images": {"train": TRAIN, "test": TEST},
                "rows": rows,
                "environment": versions,
            },
        )

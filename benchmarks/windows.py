"""Whether the comparisons of tables R1 of three papers can tell at a length that a core can pay: the baseline, the
method, its geometry of other images, and the oracle, in dense kNN and ridge mIoU, beside the floor of the place.

    python benchmarks/windows.py --tables cpcdr geosets auxiliary     # rows and settings of R1, profile small

One process, no notebooks; both the encoder at stride 4 and the network that was trained are asked. Rows on labels of
an extractor have a stage of their own and are left to `make reproduce`. What is there already (--out) is not run again.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from dense_ssl.core import environment, read_json, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.evaluation.floors import Position
from dense_ssl.evaluation.knn import knn
from dense_ssl.evaluation.probe_segmentation import evaluate as ridge
from dense_ssl.experiments.plan import plan
from dense_ssl.methods.catalog import load_method
from dense_ssl.models.encoders import load_encoder
from dense_ssl.training.configuration import Launch, Pretrain
from dense_ssl.training.loop import pretrain

STRIDE, TEST = 4, 64
EFFECTS = ("pasted", "cells_in_sets", "across_images", "loss", "loss_over_lnK", "effective_rank")


def numbers(network: torch.nn.Module, train, test, size: tuple[int, int]) -> dict[str, float]:
    found = {"knn": knn(network, train, test, size, progress=False), "ridge": ridge(network, train, test, size)}
    return {name: round(100 * result["miou"], 2) for name, result in found.items()}


def measure(job, folder: Path) -> dict:
    "Train a row and measure its networks, with the floor that is highest on street and rooms: where a cell is."
    config, parameters = Pretrain(**job.stages["pretrain"].identity), job.stages["evaluate"].parameters
    size, name = tuple(parameters["size"]), parameters["data"]
    pretrain(config, folder, Launch(threads=1, tensorboard=False, progress=False))
    train, test = (open_data(name, split, size=size, count=n)
                   for split, n in (("train", parameters["train_count"]), ("test", TEST)))
    encoder = load_encoder(folder, STRIDE).eval()
    networks = {"encoder": encoder, "position": Position(STRIDE)}
    if parameters.get("network") == "trained":
        networks["trained network"] = load_method(folder).dense_network.eval()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"label": job.row["label"], "steps": config.steps,
            "seconds": read_json(folder / "done.json")["seconds"],
            **{k: numbers(network, train, test, size) for k, network in networks.items()},
            "last": {k: round(lines[-1][k], 3) for k in EFFECTS if k in lines[-1]}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=["cpcdr", "geosets", "auxiliary"])
    parser.add_argument("--rows", nargs="*", help="ids; default: all that need no labels of an extractor")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--out", default=Path(__file__).with_suffix(".json"), type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for job in plan("small", {t: {"R1": given.rows or "all"} for t in given.tables}, seeds=given.seeds):
        kept = read_json(given.out)["rows"] if given.out.is_file() else {}
        row, seed, began = job.id, str(job.seed), time.perf_counter()
        if "labels" in job.stages or seed in kept.get(row, {}):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = measure(job, Path(folder))
        kept = read_json(given.out)["rows"] if given.out.is_file() else {}  # another process may have written
        kept.setdefault(row, {})[seed] = found
        print(f"{row:24s} seed {seed}: {found}, {time.perf_counter() - began:.0f} s", flush=True)
        versions = {k: v for k, v in environment().items() if k != "platform"}
        write_json(given.out, {"stride": STRIDE, "test images": TEST, "rows": kept, "environment": versions})

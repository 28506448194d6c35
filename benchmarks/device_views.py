"""Pairs of views of a batch: one after the other as the loader makes them, against all at once as `views: device` does.

    python benchmarks/device_views.py [--crop 224] [--batch 32] [--rounds 5] [--device cuda] [--out FILE]

Both take turns in one process on the same samples and draws; the ratio is the median over rounds of the ratio within a
round. The loader's way is always the CPU's. "drawn" is what is left to the loader: drawing and padding. Prints JSON.
"""

import argparse
import json
import statistics
import time
from operator import truediv

import torch

from dense_ssl.core import environment, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.data.device_views import on_device
from dense_ssl.data.loading import PairViews
from dense_ssl.data.views import sample_generator


def measure(crop: int, batch: int, rounds: int, device: str) -> dict:
    "Median seconds for a batch, pairs a second, and ratios to the loader's seconds of the same round."
    room = open_data("room", count=batch, size=(crop + crop // 4, crop + crop // 2))
    samples, one = [room[k] for k in range(batch)], PairViews(crop)
    two, seconds = on_device(one, "this benchmark"), {"loader": [], "drawn": [], "device": []}
    for k in range(rounds + 1):
        began = [time.perf_counter()]
        one(samples, [sample_generator(k, i) for i in range(batch)])
        began.append(time.perf_counter())
        (drawn,) = two(samples, [sample_generator(k, i) for i in range(batch)])
        began.append(time.perf_counter())
        two.finish(drawn.to(device))
        if device == "cuda":
            torch.cuda.synchronize()
        began.append(time.perf_counter())
        for name, start, end in zip(seconds, began, began[1:], strict=False):
            seconds[name].append(end - start)
    seconds = {name: values[1:] for name, values in seconds.items()}  # a round to warm up
    return {
        "seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "pairs_per_second": {name: round(batch / statistics.median(values), 1) for name, values in seconds.items()},
        "ratio_to_loader": {
            name: round(statistics.median(map(truediv, values, seconds["loader"])), 4)
            for name, values in seconds.items()
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out")
    a = parser.parse_args()
    name = torch.cuda.get_device_name() if a.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    result = {
        **measure(a.crop, a.batch, a.rounds, a.device),
        "crop": a.crop,
        "batch": a.batch,
        "rounds": a.rounds,
        "environment": {k: v for k, v in environment().items() if k != "platform"},
        "device": name,
    }
    print(json.dumps(result, indent=1))
    if a.out:
        write_json(a.out, result)

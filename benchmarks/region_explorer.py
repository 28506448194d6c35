"""The region explorer at 384x768 with 10,000 superpixels: seconds from a change of a control, or a click, to the new
picture.

    python benchmarks/region_explorer.py [--images 4] [--out benchmarks/region_explorer.cpu.json]

Drives `RegionExplorer` by its widgets' traits, as the browser does; the time ends when the picture has been handed to
the widget. Values are spread
over each slider's range, so that groupings of few and of many regions are among them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from dense_ssl.core import environment, write_json
from dense_ssl.evaluation.metrics import hardware
from dense_ssl.viz.explorers.regions import LAYERS, RegionExplorer

VALUES = {
    "w_occlusion": np.linspace(0, 200, 9),
    "w_support": np.linspace(0, 1000, 9),
    "bias": np.arange(-10, 4, 2.0),
    "threshold": np.linspace(0.01, 0.97, 9),
    "count": (2500, 5000, 10000),
}


def timed(call: Callable) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def drive(explorer: RegionExplorer, seconds: dict[str, list[float]]) -> None:
    "All controls and twenty clicks on the image that is open."
    picks, seen = np.random.default_rng(0).random((20, 2)), set()
    for name, values in VALUES.items():
        for value in values:
            took = timed(
                lambda name=name, value=value: setattr(
                    explorer.controls[name], "value", type(explorer.controls[name].value)(value)
                )
            )
            if explorer.click.view.over not in seen:  # a slider that already stood there changes nothing
                seconds.setdefault(name, []).append(took)
                seen.add(explorer.click.view.over)
            assert explorer.status.error is None, explorer.status.text
        explorer.reset.click()
    for show in (*LAYERS[1:], LAYERS[0]):
        seconds.setdefault(f"show {show}", []).append(
            timed(lambda show=show: setattr(explorer.controls["show"], "value", show))
        )
    for k, (x, y) in enumerate(picks):
        seconds.setdefault("click", []).append(
            timed(lambda k=k, x=x, y=y: setattr(explorer.click.view, "sent", f"{x:.5f} {y:.5f} {k}"))
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--out")
    a = parser.parse_args()
    torch.set_num_threads(1)
    explorer, seconds = RegionExplorer(), {}
    drive(explorer, {})  # warms up
    for index in range(1, a.images + 1):
        seconds.setdefault("opened", []).append(
            timed(lambda index=index: setattr(explorer.controls["index"], "value", index))
        )
        drive(explorer, seconds)
    found = {
        name: {"median": round(statistics.median(v), 4), "slowest": round(max(v), 4), "times": len(v)}
        for name, v in seconds.items()
    }
    result = {
        "seconds": found,
        "size": [384, 768],
        "images": a.images,
        "config": explorer.config.model_dump(),
        "environment": {k: v for k, v in environment().items() if k != "platform"},
        "numpy": np.__version__,
        "device": hardware(),
    }
    print(json.dumps(result, indent=1))
    if a.out:
        write_json(a.out, result)

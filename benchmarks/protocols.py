"""What the protocols cost: processor seconds of each, for an encoder of 512 channels at 24 x 32 cells.

    OMP_NUM_THREADS=1 python benchmarks/protocols.py [--channels 512] [--images 200] [--out FILE]

Rooms of 96 x 128 pixels, as many of the train split as of the test split, rendered before the clock starts; for label
propagation the drives of as many street images. The encoder is one convolution and its features are kept, so what is
measured is the protocols.
"""

import argparse
import json
import time
from typing import Any

import torch
from torch import nn

from dense_ssl.core import environment, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.evaluation.catalog import PROTOCOLS, protocol_metric, run_protocol
from dense_ssl.evaluation.clips import clips, frame_pairs
from dense_ssl.evaluation.features import Kept
from dense_ssl.evaluation.metrics import hardware

SIZE = (96, 128)
CHEAP = ["knn", "probe_segmentation", "probe_depth", "probe_normals", "correspondence", "propagation"]
OPTIONS: dict[str, dict[str, Any]] = {"correspondence": {"gaps": (1, 2, 3)}}


def patches(channels: int) -> nn.Module:
    "A convolution of patches of 4 x 4 pixels with random weights."
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, channels, 4, 4), nn.ReLU())
    encoder.name, encoder.stride, encoder.channels = "patches", 4, channels
    return encoder


def splits(images: int) -> dict[str, list[Any]]:
    "Train and test split of each protocol, every sample rendered."
    rooms = [open_data("room", split, count=images, size=SIZE) for split in ("train", "test")]
    street = open_data("street", "test", count=images, size=SIZE)
    for split in rooms:
        for i in range(images):
            split[i]
    drives = clips(street, 21)
    for pairs in frame_pairs(drives, (1, 5, 10, 20), 12).values():
        for c, *frames in pairs:
            for k in frames:
                drives[c].frame(k)
    return {name: [street, street] if name == "propagation" else rooms for name in CHEAP}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--out")
    a = parser.parse_args()
    assert set(CHEAP) <= set(PROTOCOLS)
    data, encoder, rows = splits(a.images), Kept(patches(a.channels), gigabytes=1.5), {}
    for name in CHEAP:
        began = time.process_time()
        result = run_protocol(name, encoder, *data[name], SIZE, progress=False, **OPTIONS.get(name, {}))
        rows[name] = {"processor_seconds": round(time.process_time() - began, 1),
                      "value": round(result[protocol_metric(name)[1]], 4), "protocol": result["protocol"]}
        print(f"{name:20} {rows[name]['processor_seconds']:6.1f} s", flush=True)
    total = round(sum(r["processor_seconds"] for r in rows.values()), 1)
    result = {"channels": a.channels, "images": a.images, "processor_seconds": total, "protocols": rows,
              "environment": {k: v for k, v in environment().items() if k != "platform"}, "device": hardware()}
    print(json.dumps({"processor_seconds": total}))
    if a.out:
        write_json(a.out, result)


if __name__ == "__main__":
    main()

"""Which protocols tell a trained network from what knows nothing: four floors, a short training, three seeds.

    OMP_NUM_THREADS=1 python benchmarks/floors.py [--data room street nyuv2 rgbd_sequence] [--seeds 0 1 2] [--table]

NYUv2 and rgbd_sequence lie in `DENSE_SSL_DATA`. The trained network is PixContrast's (PixPro's T), 0.37 million
parameters, features at stride 4, on images of the train split; on rgbd_sequence it is the one of NYUv2. All images are
brought to 96 x 128, those of the street to 96 x 192. What is there already (--out) is not computed again; --table
prints what is there.
"""

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from dense_ssl.core import data_root, environment, read_json, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.data.sequences import RGBDSequences
from dense_ssl.evaluation.catalog import protocol_metric, run_protocol
from dense_ssl.evaluation.coherence import object_coherence
from dense_ssl.evaluation.features import Kept, Part
from dense_ssl.evaluation.floors import floor_encoders
from dense_ssl.models.encoders import load_encoder
from dense_ssl.training.configuration import Launch, Pretrain, parse
from dense_ssl.training.launch import run_pretrain

NETWORK = {"encoder": "timm/test_resnet", "output_stride": 4}
TRAINING = {"method": "pixcontrast", "method_options": {"hidden": 256, "out": 60}, "crop": 64, "scale": [0.2, 1.0],
            "batch_size": 8, "steps": 300, "warmup": 30, "lr": 0.1}
KNN = {"capacity": 5000}
LABELLED = {"knn": KNN, "probe_segmentation": {}}
GEOMETRY = {"probe_depth": {}, "probe_normals": {}}
PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {  # of each data set, with options
    "room": {**LABELLED, **GEOMETRY, "correspondence": {"gaps": (1, 2, 3)}, "coherence": {}},
    "street": {**LABELLED, **GEOMETRY, "correspondence": {}, "propagation": {}, "coherence": {}},
    "nyuv2": {**LABELLED, **GEOMETRY, "coherence": {}},
    "rgbd_sequence": {**GEOMETRY, "correspondence": {}, "coherence": {}},
}
LACKS = {"room": "views lie too far apart for a video", "nyuv2": "no poses, no video", "rgbd_sequence": "no labels"}
FLOORS = ("colours", "position", "random", "shuffled")


def data_of(name: str) -> tuple[dict[str, Any], Any, Any]:
    "What is trained on, and the splits of the protocols."
    if name in ("room", "street"):
        size = (96, 128) if name == "room" else (96, 192)
        options = {"size": list(size), "count": 128 if name == "room" else 64}
        test = open_data(name, "test", size=size, count=64 if name == "room" else 40)
        return {"name": name, "options": options}, open_data(name, "train", **options), test
    nyu = {"name": "nyuv2", "root": str(data_root() / "nyuv2")}
    if name == "nyuv2":
        train, test = (open_data(**nyu, split=split) for split in ("train", "test"))
        return nyu, Part(train, range(0, 795, 5), "train"), Part(test, range(0, 654, 6), "test")
    frames = RGBDSequences(data_root() / "rgbd_sequence")
    return nyu, Part(frames, range(70), "train"), Part(frames, range(80, 125), "test")


def measure(protocol: str, encoder: Any, train: Any, test: Any, size: tuple[int, int], options: dict) -> dict[str, Any]:
    "The value of a protocol, its sentence, and what it gave for each gap."
    if protocol == "coherence":
        found = object_coherence(encoder, test, size, (1, 2, 4, 8), progress=False)
        kind = next(k for k in ("object", "class", "depth") if k in found)
        return {"value": found[kind]["auc"], "of": kind, "protocol": found["protocol"]}
    found = run_protocol(protocol, encoder, train, test, size, progress=False, **options)
    key = protocol_metric(protocol)[1]
    more = {k: found[k] for k in ("abs_rel", "median", "pixel_accuracy") if k in found}
    gaps = {str(g): v[key] for g, v in found.get("by_gap", {}).items()}
    return {"value": found[key], **more, **({"by_gap": gaps} if gaps else {}), "protocol": found["protocol"]}


def fill(name: str, seeds: list[int], rows: dict, save: Any) -> None:
    "Every protocol of a data set, of the trained network and of its floors, for every seed; what is there is kept."
    training, train, test = data_of(name)
    size = (96, 192) if name == "street" else (96, 128)
    for seed in seeds:
        config = parse(Pretrain, {"data": training, **NETWORK, **TRAINING, "seed": seed})
        folder = run_pretrain(config, parse(Launch, {"threads": 1}, "launch"),
                              name=f"floors-{training['name']}-s{seed}", show=lambda line: None)
        trained = load_encoder(folder)
        encoders = {"trained": trained, **floor_encoders(trained, seed)}
        for who, encoder in encoders.items():
            own, kept = rows.setdefault(name, {}).setdefault(who, {}), Kept(encoder)
            if seed != seeds[0] and who in FLOORS[:2]:  # they have no seed
                continue
            for protocol, options in PROTOCOLS[name].items():
                if str(seed) not in own.setdefault(protocol, {}):
                    began = time.process_time()
                    own[protocol][str(seed)] = measure(protocol, kept, train, test, size, options)
                    took = time.process_time() - began
                    value = own[protocol][str(seed)]["value"]
                    print(f"{name:14} {who:9} {seed} {protocol:19} {value:.4f}  {took:.0f} s", flush=True)
                    save()


def verdict(cells: dict[str, dict[str, dict]]) -> tuple[str, float]:
    """"headline" where the trained network is ahead of every floor by more than three deviations, else "diagnostic";
    and the smallest of these distances. The deviation of a difference is sqrt(s_trained^2 + s_floor^2) over seeds."""
    values = {who: [r["value"] for r in seeds.values()] for who, seeds in cells.items()}
    spread = {who: statistics.stdev(v) if len(v) > 1 else 0.0 for who, v in values.items()}
    far = min((statistics.fmean(values["trained"]) - statistics.fmean(values[f]))
              / math.hypot(spread["trained"], spread[f], 1e-9) for f in FLOORS)
    return ("headline" if far > 3 else "diagnostic"), far


def table(rows: dict[str, Any]) -> str:
    "Markdown: a line for each data set and protocol, in percent, deviations over seeds."
    lines = ["| data | protocol | trained | " + " | ".join(FLOORS) + " | ahead by | |", "|---" * 9 + "|"]
    for name, own in rows.items():
        for protocol in PROTOCOLS[name]:
            cells = {who: own[who][protocol] for who in ("trained", *FLOORS) if own.get(who, {}).get(protocol)}
            if len(cells) < 5:
                continue
            values = {who: [100 * r["value"] for r in seeds.values()] for who, seeds in cells.items()}
            text = [f"{statistics.fmean(v):.1f}" + (f" ± {statistics.stdev(v):.1f}" if len(v) > 1 else "")
                    for v in values.values()]
            word, far = verdict(cells)
            lines.append(f"| {name} | {protocol} | " + " | ".join(text) + f" | {far:.1f} deviations | {word} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=list(PROTOCOLS), choices=list(PROTOCOLS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--out", default=Path(__file__).with_suffix(".json"), type=Path)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_json(given.out)["rows"] if given.out.is_file() else {}

    def save() -> None:
        versions = {k: v for k, v in environment().items() if k != "platform"}
        write_json(given.out, {**NETWORK, "training": TRAINING, "rows": rows, "environment": versions})

    for name in () if given.table else given.data:
        fill(name, given.seeds, rows, save)
    print(table(rows))


if __name__ == "__main__":
    main()

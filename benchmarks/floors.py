"""Which protocols tell a trained network from what knows nothing: four floors, a short training, three seeds.

    OMP_NUM_THREADS=1 python benchmarks/floors.py [--data room street nyuv2 ...] [--seeds 0 1 2] [--table]

Real data lies in `DENSE_SSL_DATA`. The trained network is PixDepth's after 300 steps on images of the train split (on
rgbd_sequence the one of NYUv2, on street_video that of the street), 0.37 million parameters, features at stride 4. All
images are brought to 96 x 128, those of streets to 96 x 192. What is there already (--out) is not computed again;
--table prints what is there. --trained: folders of finished pre-trainings, one for each seed, in place of its own.
"""

import argparse
import math
import statistics
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from dense_ssl.core import data_root, environment, is_done, read_json, run_folder, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.data.folders import ImageFolder
from dense_ssl.data.sequences import RGBDSequences
from dense_ssl.evaluation.catalog import protocol_metric, run_protocol
from dense_ssl.evaluation.features import Kept, Part
from dense_ssl.evaluation.floors import floor_encoders
from dense_ssl.experiments.tables import value
from dense_ssl.models.encoders import load_encoder
from dense_ssl.training.configuration import Launch, Pretrain, parse
from dense_ssl.training.launch import run_modules
from dense_ssl.training.loop import pretrain

NETWORK = {"encoder": "timm/test_resnet", "output_stride": 4}
TRAINING = {"method": "pixdepth", "crop": 64, "scale": [0.2, 1.0], "batch_size": 8, "steps": 300, "warmup": 30,
            "lr": 0.4,
            "method_options": {"distance_thresholds": [0.3], "depth_thresholds": [0.1], "hidden": 256, "out": 60}}
KNN = {"capacity": 5000}
LABELLED = {"knn": KNN, "probe_segmentation": {}}
COHERENCE = {"coherence": {"distances": (1, 2, 4, 8)}}
GEOMETRY = {"probe_depth": {}, "probe_normals": {}}
PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {  # of each data set, with options
    "room": {**LABELLED, **GEOMETRY, "correspondence": {"gaps": (1, 2, 3)}, **COHERENCE},
    "street": {**LABELLED, **GEOMETRY, "correspondence": {}, "propagation": {}, **COHERENCE},
    "nyuv2": {**LABELLED, **GEOMETRY, **COHERENCE},
    "rgbd_sequence": {**GEOMETRY, "correspondence": {}, **COHERENCE},
    "street_video": {"propagation": {}},
}
FLOORS = ("colours", "position", "random", "shuffled")


@lru_cache
def data_of(name: str) -> tuple[Any, Any]:
    "The splits of the protocols, thinned."
    if name in ("room", "street"):
        size, most = ((96, 128), 128) if name == "room" else ((96, 192), 64)
        counts = {"train": most, "test": most // 2}
        return tuple(open_data(name, split, size=size, count=n) for split, n in counts.items())
    if name == "nyuv2":
        train, test = (open_data(name, split, root=data_root() / "nyuv2") for split in ("train", "test"))
        return Part(train, range(0, 795, 5), "train"), Part(test, range(0, 654, 8), "test")
    if name == "street_video":  # its labels are a network's
        video = ImageFolder(data_root() / name / "images", labels=data_root() / name / "labels", label_ids="cityscapes")
        return video, video
    frames = RGBDSequences(data_root() / "rgbd_sequence")
    return Part(frames, range(70), "train"), Part(frames, range(80, 125), "test")


def measure(protocol: str, encoder: Any, train: Any, test: Any, size: tuple[int, int], options: dict) -> dict[str, Any]:
    "The value of a protocol, its sentence, and what it gave for each gap."
    found = run_protocol(protocol, encoder, train, test, size, progress=False, **options)
    key = protocol_metric(protocol)[1]
    more = {k: found[k] for k in ("abs_rel", "median", "pixel_accuracy") if k in found}
    gaps = {str(g): v[key] for g, v in found.get("by_gap", {}).items()}
    return {"value": value(found, key), **more, **({"by_gap": gaps} if gaps else {}), "protocol": found["protocol"]}


def train(name: str, seed: int) -> Path:
    "Folder of the finished pre-training for a data set with a seed."
    data = {"room": {"name": "room", "options": {"size": [96, 128], "count": 256}},
            "street": {"name": "street", "options": {"size": [96, 192], "count": 128}},
            "nyuv2": {"name": "nyuv2", "root": str(data_root() / "nyuv2")}}
    place = {"rgbd_sequence": "nyuv2", "street_video": "street"}.get(name, name)
    config = parse(Pretrain, {"data": data[place], **NETWORK, **TRAINING, "seed": seed})
    folder = run_folder("pretrain", f"floors-{place}-s{seed}", config.model_dump(mode="json"), run_modules(config))
    if not is_done(folder):
        pretrain(config, folder, Launch(threads=1, tensorboard=False, progress=False))
    return folder


def fill(name: str, seed: int, trained: Any, rows: dict, save: Any) -> None:
    "Every protocol of a data set, of the trained network and of its floors, for a seed; what is there is kept."
    train, test = data_of(name)
    size = (96, 192) if "street" in name else (96, 128)
    for who, encoder in {"trained": trained, **floor_encoders(trained, seed)}.items():
        own, kept = rows.setdefault(name, {}).setdefault(who, {}), Kept(encoder)
        for protocol, options in PROTOCOLS[name].items():
            seeds = own.setdefault(protocol, {})
            if str(seed) in seeds or (seeds and who in FLOORS[:2]):  # colours and position have no seed
                continue
            began = time.process_time()
            seeds[str(seed)] = measure(protocol, kept, train, test, size, options)
            took = time.process_time() - began
            print(f"{name:14} {who:9} {seed} {protocol:19} {seeds[str(seed)]['value']:.4f}  {took:.0f} s", flush=True)
            save()


def verdict(cells: dict[str, dict[str, dict]]) -> tuple[str, float]:
    """"headline" where the trained network is ahead of every floor by more than three deviations, else "diagnostic";
    and the smallest of these distances. The deviation of a difference is sqrt(s_trained^2 + s_floor^2) over seeds; with
    one seed there is none, and a trained network that is ahead gets no verdict."""
    values = {who: [r["value"] for r in seeds.values()] for who, seeds in cells.items()}
    spread = {who: statistics.stdev(v) if len(v) > 1 else 0.0 for who, v in values.items()}
    ahead = {f: statistics.fmean(values["trained"]) - statistics.fmean(values[f]) for f in FLOORS}
    if len(values["trained"]) < 2:
        return ("one seed" if min(ahead.values()) > 0 else "diagnostic"), math.nan
    far = min(ahead[f] / math.hypot(spread["trained"], spread[f], 1e-9) for f in FLOORS)
    return ("headline" if far > 3 else "diagnostic"), far


def table(rows: dict[str, Any]) -> str:
    "Markdown: a line for each data set and protocol, in percent, deviations over seeds."
    lines = ["| data | protocol | trained | " + " | ".join(FLOORS) + " | deviations ahead | |", "|---" * 9 + "|"]
    for name, own in rows.items():
        for protocol in PROTOCOLS[name]:
            cells = {who: own[who][protocol] for who in ("trained", *FLOORS) if own.get(who, {}).get(protocol)}
            if len(cells) < 5:
                continue
            values = {who: [100 * r["value"] for r in seeds.values()] for who, seeds in cells.items()}
            text = [f"{statistics.fmean(v):.1f}" + (f" ± {statistics.stdev(v):.1f}" if len(v) > 1 else "")
                    for v in values.values()]
            word, far = verdict(cells)
            distance = "" if math.isnan(far) else f"{far:.1f}"
            lines.append(f"| {name} | {protocol} | " + " | ".join(text) + f" | {distance} | {word} |")
    return "\n".join(lines)


def findings(rows: dict[str, Any]) -> str:
    "Of each protocol, the data on which it is a headline and those on which it is a diagnostic."
    said: dict[str, dict[str, list[str]]] = {}
    for name, own in rows.items():
        for protocol in PROTOCOLS[name]:
            if len(cells := {who: own[who][protocol] for who in ("trained", *FLOORS) if own[who].get(protocol)}) == 5:
                said.setdefault(protocol, {}).setdefault(verdict(cells)[0], []).append(name)
    return "\n".join(f"{protocol}: " + "; ".join(f"{word} on {', '.join(names)}" for word, names in found.items())
                     for protocol, found in said.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=list(PROTOCOLS), choices=list(PROTOCOLS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--out", default=Path(__file__).with_suffix(".json"), type=Path)
    parser.add_argument("--trained", nargs="*", type=Path, metavar="RUN", default=[])
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_json(given.out)["rows"] if given.out.is_file() else {}

    def save() -> None:
        versions = {k: v for k, v in environment().items() if k != "platform"}
        write_json(given.out, {**NETWORK, "training": TRAINING, "rows": rows, "environment": versions})

    own = dict(zip(given.seeds, given.trained, strict=False))
    for seed in () if given.table else given.seeds:
        for name in given.data:
            fill(name, seed, load_encoder(own[seed] if own else train(name, seed)), rows, save)
    print(table(rows), findings(rows), sep="\n\n")


if __name__ == "__main__":
    main()

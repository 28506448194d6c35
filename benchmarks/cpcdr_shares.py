"""What the features of CPCDR's runs on the street world vary with: place, image, class; for every finished run of
table W1.

python benchmarks/cpcdr_shares.py --profile small        # after `python -m dense_ssl.experiments.reproduce --profile
small`
"""

import argparse
import statistics
from pathlib import Path

import torch

from dense_ssl.core import environment, is_done, read_json, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.evaluation.shares import variance_shares
from dense_ssl.experiments.plan import plan
from dense_ssl.methods.catalog import load_method
from dense_ssl.viz.pca import Embedder

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="small")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", default=Path(__file__).with_suffix(".json"), type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    test, rows = None, {}
    for job in plan(given.profile, {"cpcdr": {"W1": "all"}}):
        if job.row["pretrain"]["method"] != "cpcdr" or not is_done(job.stages["evaluate"].folder):
            continue
        test = test or open_data(
            "street", "test", size=job.stages["evaluate"].parameters["data_options"]["size"], count=given.images
        )
        shares = variance_shares(
            Embedder(load_method(job.stages["pretrain"].folder), 32),
            test,
            tuple(job.stages["evaluate"].parameters["size"]),
        )
        done, cluster = (
            read_json(job.stages["pretrain"].folder / "done.json"),
            read_json(job.stages["evaluate"].folder / "clustering.json"),
        )
        found = {**shares, "clustering mIoU": cluster["miou"], "last loss": done["loss_last"]}
        for name, value in found.items():
            rows.setdefault(job.row["label"], {}).setdefault(name, []).append(round(value, 4))
        print(job.row["label"], job.seed, {name: round(value, 3) for name, value in found.items()}, flush=True)
    mean = {
        label: {name: round(statistics.fmean(values), 4) for name, values in found.items()}
        for label, found in rows.items()
    }
    versions = {k: v for k, v in environment().items() if k != "platform"}
    write_json(
        given.out,
        {"profile": given.profile, "images": given.images, "rows": rows, "mean": mean, "environment": versions},
    )

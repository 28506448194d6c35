"""A control is what its name says: the truth is seen by oracles alone; geometry of other images is as much geometry."""

from dataclasses import replace

import pytest
import torch

from dense_ssl.data.catalog import open_data
from dense_ssl.data.loading import PairViews
from dense_ssl.data.views import sample_generator
from dense_ssl.experiments.rows import read_yaml, table_rows
from dense_ssl.methods.catalog import build_method
from dense_ssl.models.encoders import build_encoder

PAPERS = ("pixdepth", "cpcdr", "auxiliary", "geosets")
ROWS = [(paper, table, row) for paper in PAPERS for table in read_yaml(f"{paper}.yaml")["tables"]
        for row in table_rows(paper, table) if "pretrain" in row]


def sees_truth(pretrain: dict) -> bool:
    return pretrain.get("proposals") == "truth" or pretrain.get("sets") == "truth" or "true_labels" in pretrain


def test_only_rows_that_say_so_see_the_truth():
    for paper, table, row in ROWS:
        said = row.get("control") == "oracle" or any(w in row["label"] for w in ("GT", "true ", "truth"))
        assert sees_truth(row["pretrain"]) <= said, f"{paper}.{table}.{row['id']} sees the truth and does not say so"
        assert (row.get("control") == "oracle") <= sees_truth(row["pretrain"])
        assert row["pretrain"].get("shuffled", False) == (row.get("control") == "shuffled")


@pytest.mark.parametrize("paper", PAPERS)
def test_every_paper_has_both_controls(paper):
    controls = {row.get("control") for p, _, row in ROWS if p == paper}
    assert {"shuffled", "oracle"} <= controls
    judged = [row for p, _, row in ROWS if p == paper and "baseline" in row]
    ids = {row["id"] for p, _, row in ROWS if p == paper}
    assert judged and all(row["baseline"] in ids for row in judged)


def losses(options: dict, method: dict, scrambled: bool) -> float:
    "PixDepth's loss on a batch of rooms, whose truth may be replaced by noise before anything else sees it."
    data = open_data("room", size=(48, 64), count=4, **options)
    samples = [data[i] for i in range(4)]
    if scrambled:
        generator = sample_generator(7)
        noise = torch.randint(0, 12, (48, 64), generator=generator)
        samples = [replace(s, labels=noise, instances=noise) for s in samples]
    views = PairViews(32, (0.3, 1.0))(samples, [sample_generator(0, i) for i in range(4)])
    torch.manual_seed(0)
    network = build_method("pixdepth", build_encoder("timm/test_resnet", 4), hidden=32, out=30, **method)
    return network(*views)[0].item()


@pytest.mark.parametrize("shuffled", [False, True])
def test_truth_never_reaches_a_run_with_depth(shuffled):
    method = {"distance_thresholds": [0.5], "depth_thresholds": [0.1]}
    assert losses({"shuffled": shuffled}, method, False) == losses({"shuffled": shuffled}, method, True)


def test_depth_of_other_images_and_true_objects_are_other_positives():
    depth = {"distance_thresholds": [0.5], "depth_thresholds": [0.1]}
    oracle = {"distance_thresholds": [0.5], "depth_thresholds": None, "same_region": True}
    found = [losses({}, depth, False), losses({"shuffled": True}, depth, False),
             losses({"proposals": "truth"}, oracle, False)]
    assert len(set(found)) == 3


def test_depth_of_other_images_is_as_much_depth():
    own, others = (open_data("room", size=(48, 64), count=12, shuffled=s) for s in (False, True))
    depths = [torch.stack([d[i].depth for i in range(12)]) for d in (own, others)]
    assert not any(torch.equal(a, b) for a, b in zip(*depths, strict=True))
    assert torch.equal(*(d.flatten().sort()[0] for d in depths))
    assert all(torch.equal(own[i].image, others[i].image) for i in range(12))

"""CPCDR through the worker: killed and resumed, alone and in two processes, with what it leaves for evaluation."""

import pytest
import torch
from test_training import QUICK, finish, kill_at, losses, run_here, same_bits

from dense_ssl.core import read_json
from dense_ssl.data.catalog import open_data
from dense_ssl.data.views import normalize_image
from dense_ssl.methods.catalog import load_method
from dense_ssl.models.encoders import read_weights
from dense_ssl.training.configuration import Pretrain, parse

SCENES = {
    "data": {"name": "street", "options": {"count": 8, "size": [64, 128], "proposals": "truth"}},
    "method": "cpcdr",
    "encoder": "resnet18",
    "crop": (32, 64),
    "scale": (0.25, 1.0),
    "batch_size": 8,
    "steps": 6,
    "warmup": 1,
    "lr": 0.05,
    "method_options": {
        "prototypes": 20,
        "pyramid": 32,
        "channels": 32,
        "out": 16,
        "copy_paste": {"images": 4, "reference_height": 96},
    },
}


def test_killed_run_ends_with_the_same_bits(tmp_path):
    """Scenes are a function of seed and step, not of loader workers or interruptions; prototypes and pyramid resume
    with the encoder."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_here(whole, SCENES, QUICK)
    for step in (1, 3):
        kill_at(cut, SCENES, QUICK | {"workers": 1}, step)
    run_here(cut, SCENES, QUICK | {"workers": 1})
    assert same_bits(whole, cut, "method.safetensors")
    assert losses(cut) == losses(whole) and len(losses(whole)) == 6
    model = load_method(whole)
    z = model.embed(normalize_image(open_data("street", "test", count=1, size=(64, 128))[0].image)[None])
    assert z.shape == (1, 16, 16, 32) and model.prototypes.shape == (20, 16)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(1, 16, 32))


def test_two_processes_walk_the_losses_of_one(tmp_path):
    """Codes are balanced over the global batch, groups of images stay within a process: the same losses and weights in
    float64."""
    config = SCENES | {"steps": 4, "precision": "64-true"}
    one, two = tmp_path / "one", tmp_path / "two"
    run_here(one, config, QUICK | {"checkpoint_seconds": 1e9})
    finish(two, config, QUICK | {"checkpoint_seconds": 1e9, "processes": 2})
    difference = max(abs(a - b) for a, b in zip(losses(one), losses(two), strict=True))
    print("largest difference of the losses in float64:", difference)
    assert difference < 1e-6 and read_json(two / "done.json")["world_size"] == 2
    for name in (
        "encoder.safetensors",
        "method.safetensors",
    ):  # what is left is what was trained, statistics of BatchNorm included
        a, b = (read_weights(folder / name) for folder in (one, two))
        assert a.keys() == b.keys() and max((a[k].double() - b[k].double()).abs().max().item() for k in a) < 1e-8


def test_regions_are_asked_for_before_the_first_step(tmp_path):
    "A data set without regions, and a batch that cannot be split into groups: one sentence."
    plain = SCENES | {"data": {"name": "street", "options": {"count": 8, "size": [64, 128]}}}
    with pytest.raises(ValueError, match="method cpcdr needs regions, which dataset street does not give"):
        run_here(tmp_path / "plain", plain, QUICK)
    with pytest.raises(ValueError, match="a micro-batch of 6 samples cannot be split into groups of 4 images"):
        run_here(tmp_path / "six", SCENES | {"batch_size": 6}, QUICK)
    with pytest.raises(ValueError, match="copy_paste.images"):
        parse(Pretrain, SCENES | {"method_options": {"copy_paste": {"images": -1}}})

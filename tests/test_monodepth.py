"""Monodepth2 through the worker: killed and resumed, split over processes, with bad frames, and the maps that it
leaves."""

import pytest
import torch
from PIL import Image
from test_training import QUICK, finish, kill_at, losses, run_here, same_bits

from dense_ssl.core import read_json, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.data.worlds.street import StreetWorld
from dense_ssl.methods.catalog import load_method
from dense_ssl.methods.monodepth import monodepth, video_recipe

RARE = QUICK | {"checkpoint_seconds": 1e9}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> dict:
    "Two drives of six frames, of which one is cut off in the middle; five steps of two triplets."
    root, world = tmp_path_factory.mktemp("videos"), StreetWorld(count=2, size=(64, 96), views=1)
    for drive in range(2):
        (root / f"drive{drive}").mkdir()
        for t, frame in enumerate(world.sequence(drive, 6)):
            Image.fromarray(frame.image.permute(1, 2, 0).numpy()).save(root / f"drive{drive}" / f"{t:03d}.png")
    broken = root / "drive0" / "005.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    write_json(root / "camera.json", {"width": 96, "height": 64, "K": world.K.tolist()})
    return video_recipe(root, str(root / "camera.json"), (64, 96), steps=5, batch_size=2)


def test_killed_run_ends_with_the_same_bits(tmp_path, recipe):
    "Both networks, their order of triplets, their jitter and the noise of the mask go on as if nothing had happened."
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_here(whole, recipe, RARE)
    for step in (0, 2):
        kill_at(cut, recipe, QUICK | {"workers": 1}, step)
    assert not (cut / "done.json").exists()
    run_here(cut, recipe, RARE)
    assert same_bits(whole, cut, "method.safetensors")
    assert losses(cut) == losses(whole) and len(losses(whole)) == 5
    done = read_json(whole / "done.json")
    assert done["images"] == 8 and done["skipped"] == 1 and "005.png" in done["skipped_messages"][0]
    frame = open_data("video", root=recipe["data"]["root"]).frames[0]
    disparity = load_method(whole).depth.predict(frame.image)
    assert disparity.shape == (64, 96) and torch.equal(monodepth(cut)(frame), disparity)


def test_two_processes_walk_the_losses_of_one(tmp_path, recipe):
    "In float64, without the mask, whose noise each process draws for itself."
    config = recipe | {"steps": 2, "milestones": [1], "precision": "64-true", "method_options": {"automask": False}}
    run_here(tmp_path / "one", config, RARE)
    finish(tmp_path / "two", config, RARE | {"processes": 2})
    difference = max(abs(a - b) for a, b in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True))
    print("largest difference of the losses in float64:", difference)
    assert difference < 1e-6 and read_json(tmp_path / "two" / "done.json")["world_size"] == 2


@pytest.mark.parametrize(
    "data, words",
    [
        (
            {"name": "room", "options": {"count": 4, "size": [64, 96]}},
            "method monodepth needs neighbours, which dataset room",
        ),
        (
            {"name": "video", "root": "ROOT"},
            'needs K, which dataset video does not give; for a folder, add {"intrinsics"',
        ),
    ],
)
def test_what_is_lacking_is_said_before_the_first_step(tmp_path, recipe, data, words):
    data = data | ({"root": recipe["data"]["root"]} if "root" in data else {})
    with pytest.raises(ValueError, match=words) as error:
        run_here(tmp_path, recipe | {"data": data}, QUICK)
    assert "\n" not in str(error.value)

"""Geometric sets in real processes: both stages killed and resumed, split over ranks, images without poses, scans with
all that can be wrong."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from test_training import QUICK, finish, kill_at, losses, run_here, same_bits

from dense_ssl.core import is_done, read_json, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.data.worlds.room import RoomWorld
from dense_ssl.evaluation.segmentation import Protocol, train_segmentation
from dense_ssl.methods.catalog import load_method
from dense_ssl.models.encoders import load_encoder, read_weights
from dense_ssl.training.loop import Log

SIZE = (48, 64)
RARE = QUICK | {"checkpoint_seconds": 1e9}
OPTIONS = {"matches": 64, "voxel": 0.1, "channels": [32, 16, 8, 4], "out": 8, "point_widths": [8, 16]}


@pytest.fixture(scope="module")
def posed(tmp_path_factory) -> dict:
    "View and Geo for four steps, then four with sets, on pairs of frames of two small rooms."
    options = {"count": 8, "size": list(SIZE), "cache": str(tmp_path_factory.mktemp("pairs"))}
    return {
        "data": {"name": "room_pairs", "options": options},
        "method": "geosets",
        "method_options": OPTIONS | {"stage_one": 0.5},
        "encoder": "resnet18",
        "crop": SIZE,
        "batch_size": 4,
        "steps": 8,
        "warmup": 1,
        "lr": 0.05,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory, posed) -> Path:
    "An uninterrupted run."
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder, posed, RARE)
    return folder


def kill_after(folder: Path, config: dict, launch: dict, step: int) -> int:
    "Start or resume a run and kill it once `step` is logged; the last step that it wrote down."
    kill_at(folder, config, launch, step, random.random() * 0.1)
    return Log.read(folder / "metrics.jsonl")[-1]["step"]


def test_killed_in_both_stages_ends_with_the_same_bits(tmp_path, posed, whole):
    "One log, one checkpoint, one resume: the run knows by itself in which stage it is."
    stage = [line["stage"] for line in Log.read(whole / "metrics.jsonl")]
    assert stage == [1, 1, 1, 1, 2, 2, 2, 2]
    for low, high in ((0, 3), (4, 7)):
        reached = kill_after(tmp_path, posed, QUICK | {"workers": 1}, low)
        assert low <= reached < high and not is_done(tmp_path)
    run_here(tmp_path, posed, QUICK | {"workers": 1})
    assert same_bits(whole, tmp_path, "method.safetensors")
    assert losses(tmp_path) == losses(whole) and len(losses(whole)) == 8
    assert [line["stage"] for line in Log.read(tmp_path / "metrics.jsonl")] == stage


def test_the_decoder_that_is_left_is_fine_tuned(tmp_path, whole):
    "An smp.Unet starts from the run's encoder and decoder, key by key."
    protocol = Protocol(
        decoder="unet", frozen=False, size=SIZE, output_stride=32, decoder_channels=32, epochs=1, batch_size=4
    )
    train, test = (open_data("room", split, count=8, size=SIZE) for split in ("train", "test"))
    decoder = load_method(whole).decoder.state_dict()
    found = train_segmentation(
        load_encoder(whole), train, test, protocol, tmp_path, pictures=0, progress=False, decoder=decoder
    )
    assert 0 <= found["miou"] <= 1 and found["epochs"] == 1
    with pytest.raises(ValueError, match="the pre-trained decoder does not fit unet of 64 channels"):
        train_segmentation(
            load_encoder(whole),
            train,
            test,
            protocol.model_copy(update={"decoder_channels": 64}),
            tmp_path / "wide",
            progress=False,
            decoder=decoder,
        )


def test_two_processes_walk_the_losses_of_one(tmp_path, posed):
    """In float64, with negatives of the pair, whose loss does not depend on who else is in the batch: the same path
    through both stages."""
    config, one, two = posed | {"precision": "64-true", "steps": 4}, tmp_path / "one", tmp_path / "two"
    run_here(one, config, RARE)
    finish(two, config, RARE | {"processes": 2})
    difference = max(abs(a - b) for a, b in zip(losses(one), losses(two), strict=True))
    print("largest difference of the losses in float64:", difference)
    assert difference < 2e-6 and read_json(two / "done.json")["world_size"] == 2  # losses are logged in float32
    a, b = (read_weights(folder / "encoder.safetensors") for folder in (one, two))
    assert max((a[k].double() - b[k].double()).abs().max().item() for k in a) < 1e-7


def test_sets_of_single_images(tmp_path):
    "A folder of images with depth and no pose: pieces of their surfaces as sets, View over two crops before."
    world = RoomWorld(count=6, size=SIZE)
    for i in range(6):
        for name, picture in (
            ("images", world[i].image.permute(1, 2, 0).numpy()),
            ("depth", (world[i].depth * 1000).numpy().astype(np.uint16)),
        ):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    write_json(tmp_path / "camera.json", {"width": SIZE[1], "height": SIZE[0], "K": world.K.tolist()})
    options = {
        "depth": str(tmp_path / "depth"),
        "depth_scale": 0.001,
        "intrinsics": str(tmp_path / "camera.json"),
        "proposals": {"kind": "surface", "min_vertices": 10},
    }
    config = {
        "data": {"name": "folder", "root": str(tmp_path / "images"), "options": options},
        "method": "geosets",
        "encoder": "resnet18",
        "method_options": OPTIONS | {"posed": False, "geo": False, "stage_one": 0.5},
        "crop": 48,
        "scale": (0.5, 1.0),
        "batch_size": 3,
        "steps": 4,
    }
    run_here(tmp_path / "run", config, RARE)
    log = Log.read(tmp_path / "run" / "metrics.jsonl")
    assert read_json(tmp_path / "run" / "done.json")["steps"] == 4 and [line["stage"] for line in log] == [1, 1, 2, 2]
    assert all(line["matches"] > 5 for line in log[:2]) and all(
        line["sets"] > 2 and line["loss_sets"] > 0 for line in log[2:]
    )


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    "Two rooms as scans in ScanNet's layout, four frames each, without a mesh."
    root, world = tmp_path_factory.mktemp("scans"), RoomWorld("scan", count=8, size=SIZE)
    for i in range(8):
        scene, k, sample = root / f"scene000{i // 4}_00", i % 4, world[i]
        for place in ("color", "depth", "pose", "intrinsic"):
            (scene / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(scene / f"color/{k}.jpg", quality=95)
        Image.fromarray((sample.depth * 1000).round().numpy().astype(np.uint16)).save(scene / f"depth/{k}.png")
        np.savetxt(scene / f"pose/{k}.txt", sample.pose.numpy())
        K = np.eye(4)
        K[:3, :3] = sample.K
        np.savetxt(scene / "intrinsic/intrinsic_depth.txt", K)
    return root


def frame_pairs(root: Path, cache: Path, **options):
    return open_data("sequence_pairs", root=root, every=1, cache=cache, voxel=0.1, **options)


def lost_pose(scene: Path) -> None:
    np.savetxt(scene / "pose/1.txt", np.full((4, 4), -np.inf))


def no_depth(scene: Path) -> None:
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(scene / "depth/1.png")


def apart(scene: Path) -> None:
    "Each camera in a house of its own, in whatever unit its poses are read."
    for k, path in enumerate(sorted(scene.glob("pose/*.txt"))):
        pose = np.loadtxt(path)
        pose[0, 3] += 2e4 * k
        np.savetxt(path, pose)


def other_intrinsics(scene: Path) -> None:
    K = np.loadtxt(scene / "intrinsic/intrinsic_depth.txt")
    K[:2] *= 2
    np.savetxt(scene / "intrinsic/intrinsic_depth.txt", K)


@pytest.mark.parametrize(
    ("damage", "usable", "paired", "words"),
    [
        (lost_pose, 3, {0, 2, 3}, "pose/1.txt has values that are not finite"),
        (lambda scene: (scene / "pose/1.txt").unlink(), 3, {0, 2, 3}, "frame 1 has no pose file"),
        (lambda scene: (scene / "depth/1.png").unlink(), 3, {0, 2, 3}, "frame 1 has no depth file"),
        (no_depth, 3, {0, 2, 3}, "depth/1.png: has no valid pixel"),
        (
            other_intrinsics,
            0,
            set(),
            "at (63, 47), far from the middle of an image of 64 x 48 pixels: it belongs to another size",
        ),
        (apart, 4, set(), "no pair of its 4 usable frames overlaps by 30% or more (at most 0.0%)"),
    ],
    ids=["lost pose", "no pose", "no depth file", "depth of zeros", "other intrinsics", "apart"],
)
def test_what_cannot_be_used_is_skipped_and_named(tmp_path, scans, damage, usable, paired, words):
    "One scene is damaged: its other frames are paired all the same, the other scene is as it was."
    sound = frame_pairs(scans, tmp_path / "cache", sets="none")
    assert not sound.skipped and sound.counts["frames"] == 8
    root = shutil.copytree(scans, tmp_path / "scans")
    damage(root / "scene0000_00")
    pairs = frame_pairs(root, tmp_path / "cache", sets="none")
    assert any(words in sentence and "scene0000_00" in sentence for sentence in pairs.skipped), "\n".join(pairs.skipped)
    expected = [
        sound[k].name for k, (scene, *frames) in enumerate(sound.pairs.tolist()) if scene == 1 or set(frames) <= paired
    ]
    assert [pairs[k].name for k in range(len(pairs))] == expected and pairs.counts["frames"] == 4 + usable
    if not paired:  # and without the other scene there is nothing
        none = f"no pair of frames overlaps by 30% or more: 1 scenes with {usable} usable frames"
        with pytest.raises(ValueError, match=none if usable else "none of the frames can be used") as refused:
            frame_pairs(root, tmp_path / "cache", sets="none", scenes=["scene0000_00"])
        assert words in str(refused.value)


def test_meshes_of_a_scan(tmp_path, scans):
    "Points without faces are refused by name; faces without area, and vertices that only they use, change nothing."
    root, world = shutil.copytree(scans, tmp_path / "scans"), RoomWorld("scan", count=8, size=SIZE)
    vertices, faces, _, _ = world.mesh(0, 0.2)
    mesh = root / "scene0000_00" / "scene0000_00_vh_clean_2.ply"
    trimesh.Trimesh(vertices, faces, process=False).export(mesh)
    clean = frame_pairs(root, tmp_path / "cache").scene(0)
    far = vertices[:1] + [[0.0, 0.0, 0.01]]
    broken = np.concatenate([[[0, 0, 1], [5, 5, 5], [len(vertices), len(vertices), 0]], faces])
    trimesh.Trimesh(np.concatenate([vertices, far]), broken, process=False).export(mesh)
    again = frame_pairs(root, tmp_path / "cache").scene(0)
    number = torch.stack([clean.sets, again.sets[: len(clean.sets)]], 1).unique(dim=0)
    assert (
        torch.equal(again.points[: len(clean.points)], clean.points)
        and len(number) == len(clean.sets.unique()) == len(number[:, 1].unique()) > 10
    )
    trimesh.PointCloud(vertices).export(mesh)
    with pytest.raises(ValueError, match="vh_clean_2.ply has no faces; needs a mesh"):
        frame_pairs(root, tmp_path / "cache")

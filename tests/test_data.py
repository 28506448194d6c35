"""Data: what notebooks cannot hold (kills, worker processes, clean imports), and every bad input in one place."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader

import dense_ssl
from dense_ssl.data.folders import ImageFolder
from dense_ssl.data.nyuv2 import NYUv2
from dense_ssl.data.prepare import Job, prepare_tree, run_job
from dense_ssl.data.views import BadSample

MAKER = """
import time

def brightness(seconds=0.0, delay=0.0):
    def make(sample):
        time.sleep(delay)
        return sample.image.float().mean(0)
    return make
"""


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(16):
        path = tmp_path / "photos" / f"class{k % 2}" / f"{k:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def makers(tmp_path, monkeypatch):
    "A module with a maker that worker processes can import."
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "data_test_makers.py").write_text(MAKER)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


def job_for(photos, out, delay=0.0):
    return Job(
        factory="data_test_makers:brightness",
        runtime={"delay": delay},
        images={"root": str(photos)},
        out=str(out),
        kind="disparity",
    )


def content(tree: Path) -> dict[str, bytes]:
    "Every file below tree except the per-shard reports."
    return {
        str(p.relative_to(tree)): p.read_bytes()
        for p in sorted(tree.rglob("*"))
        if p.is_file() and ".bad" not in p.parts
    }


def cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


# ------------------------------------------------------------------------------------------------------ prepare


def test_kill_9_and_rerun_equals_uninterrupted(photos, makers, tmp_path):
    cut(photos / "class1/05.jpg")
    run_job(job_for(photos, tmp_path / "whole"), progress=False)
    job = job_for(photos, tmp_path / "killed", delay=0.2)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    command = [
        sys.executable,
        "-m",
        "dense_ssl.data.prepare",
        "--job",
        str(tmp_path / "job.json"),
        "--shards",
        "2",
        "--shard",
    ]
    children = [subprocess.Popen([*command, str(i)], stderr=subprocess.DEVNULL) for i in range(2)]
    try:
        limit = time.monotonic() + 90
        while len(list((tmp_path / "killed").rglob("*.png"))) < 5 and time.monotonic() < limit:
            time.sleep(0.01)
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()
    maps = list((tmp_path / "killed").rglob("[!.]*.png"))
    assert 5 <= len(maps) < 15 and not (tmp_path / "killed/done.json").exists()
    for path in maps:  # every final name is a whole file
        with Image.open(path) as image:
            image.load()
    (tmp_path / "killed/class0/.00.png.99999.tmp").write_bytes(b"what a killed process leaves")
    stamps = {p: p.stat().st_mtime_ns for p in maps}
    report = run_job(job_for(photos, tmp_path / "killed"), progress=False)
    assert (
        report["existing"] == len(maps)
        and report["written"] == 15 - len(maps)
        and list(report["bad"]) == ["class1/05.jpg"]
    )
    assert stamps == {p: p.stat().st_mtime_ns for p in maps}
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_what_a_process_refuses_is_the_error(photos, makers, tmp_path):
    run_job(job_for(photos, tmp_path / "one"), progress=False)
    before = content(tmp_path / "one")
    with pytest.raises(RuntimeError, match="was begun with kind 'disparity' .now 'depth'"):
        prepare_tree(job_for(photos, tmp_path / "one").model_copy(update={"kind": "depth"}), 1, tmp_path / "logs")
    assert content(tmp_path / "one") == before


def test_full_disk_names_the_file_and_leaves_nothing(photos, makers, tmp_path):
    (tmp_path / "job.json").write_text(job_for(photos, tmp_path / "out").model_dump_json())
    child = subprocess.run(
        [sys.executable, "-m", "dense_ssl.data.prepare", "--job", str(tmp_path / "job.json")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert child.returncode == 1 and "class0/00.png" in child.stderr and "disk is full" in child.stderr
    assert "Traceback" not in child.stderr and set(content(tmp_path / "out")) == {"tree.json"}


# ------------------------------------------------------------------------------------------------------ folders


@pytest.fixture
def trees(photos, makers, tmp_path):
    run_job(job_for(photos, tmp_path / "depth"), progress=False)
    return photos, tmp_path / "depth"


def save_depth(value):
    def damage(photos, depth):
        (depth / "class0/00.png").unlink()
        np.save(depth / "class0/00.npy", value)

    return damage


BAD_SAMPLES = {
    "truncated jpeg": (lambda p, d: cut(p / "class0/00.jpg"), ["photos/class0/00.jpg", "truncated"]),
    "jpeg without its last byte": (
        lambda p, d: cut(p / "class0/00.jpg", 0.9999),
        ["photos/class0/00.jpg", "truncated"],
    ),
    "text called jpg": (lambda p, d: (p / "class0/00.jpg").write_text("hello"), ["photos/class0/00.jpg"]),
    "empty file": (lambda p, d: (p / "class0/00.jpg").write_bytes(b""), ["photos/class0/00.jpg"]),
    "missing depth": (
        lambda p, d: (d / "class0/00.png").unlink(),
        ["depth/class0/00.png", "photos/class0/00.jpg", "no map for"],
    ),
    "truncated depth png": (lambda p, d: cut(d / "class0/00.png"), ["depth/class0/00.png", "truncated"]),
    "depth of another shape": (save_depth(np.ones((16, 16))), ["depth/class0/00.npy", "16 x 16", "32 x 24"]),
    "depth all zero": (save_depth(np.zeros((24, 32))), ["depth/class0/00.npy", "no valid pixel"]),
    "depth all nan": (save_depth(np.full((24, 32), np.nan)), ["depth/class0/00.npy", "no valid pixel"]),
    "depth all inf": (save_depth(np.full((24, 32), np.inf)), ["depth/class0/00.npy", "no valid pixel"]),
    "depth with channels": (save_depth(np.ones((24, 32, 3))), ["depth/class0/00.npy", "(24, 32, 3)"]),
    "npy of objects": (save_depth(np.array([{}], dtype=object)), ["depth/class0/00.npy"]),
    "truncated npy": (
        lambda p, d: (save_depth(np.ones((24, 32)))(p, d), cut(d / "class0/00.npy")),
        ["depth/class0/00.npy"],
    ),
    "depth is a colour picture": (
        lambda p, d: Image.new("RGB", (32, 24)).save(d / "class0/00.png"),
        ["depth/class0/00.png", "RGB"],
    ),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_bad_sample_is_one_sentence_with_the_file(trees, case):
    damage, words = BAD_SAMPLES[case]
    damage(*trees)
    data = ImageFolder(trees[0], depth=trees[1])
    with pytest.raises(BadSample) as error:
        data[0]
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
    assert data[1].depth.isfinite().all()  # the others are fine


def test_partly_invalid_depth_is_allowed(trees):
    depth = np.ones((24, 32))
    depth[:10], depth[10] = np.nan, np.inf
    save_depth(depth)(*trees)
    assert ImageFolder(trees[0], depth=trees[1])[0].depth.isnan().sum() == 11 * 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"root": "empty"}, "holds no image"),
        ({"root": "nowhere"}, "no such folder"),
        ({"depth_kind": "metres"}, "depth, disparity, time"),
        ({"depth_kind": "depth"}, "tree.json"),
        ({"depth": "other"}, "no map for any of the 16 images"),
        ({"labels": "other"}, "no map for any of the 16 images"),
        ({"size": 0}, "size is 0"),
    ],
)
def test_bad_folder_is_refused_at_once(trees, tmp_path, options, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other/class9").mkdir(parents=True)
    (tmp_path / "other/class9/1.png").write_bytes((trees[1] / "class0/00.png").read_bytes())
    paths = {k: tmp_path / v if k in ("root", "depth", "labels") else v for k, v in options.items()}
    with pytest.raises(ValueError, match=words):
        ImageFolder(**{"root": trees[0], "depth": trees[1], **paths})


def test_loader_workers_read_the_same(trees):
    data = ImageFolder(trees[0], depth=trees[1])
    for workers in (0, 2):
        names = [s.name for s in DataLoader(data, batch_size=None, num_workers=workers)]
        assert names == data.names


# ------------------------------------------------------------------------------------------------------ NYUv2 .mat


@pytest.fixture
def mat(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "nyu" / "nyu_depth_v2_labeled.mat"
    path.parent.mkdir()
    with h5py.File(path, "w") as f:
        f["images"] = rng.integers(0, 255, (4, 3, 32, 24), dtype=np.uint8)
        f["depths"] = rng.uniform(0.7, 9, (4, 32, 24)).astype(np.float32)
        f["labels"] = rng.integers(0, 895, (4, 32, 24)).astype(np.uint16)
    savemat(path.parent / "classMapping40.mat", {"mapClass": rng.integers(1, 41, (1, 894))})
    savemat(path.parent / "splits.mat", {"trainNdxs": [[1], [4]], "testNdxs": [[2], [3]]})
    return path


def rewrite(key, value):
    def damage(mat):
        with h5py.File(mat, "r+") as f:
            del f[key]
            if value is not None:
                f[key] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda m: m.unlink(), ["nyu_depth_v2_labeled.mat", "images"]),
        (cut, ["nyu_depth_v2_labeled.mat", "HDF5"]),
        (lambda m: (m.parent / "splits.mat").unlink(), ["splits.mat", "is missing", "testNdxs"]),
        (lambda m: (m.parent / "classMapping40.mat").unlink(), ["classMapping40.mat", "is missing", "mapClass"]),
        (lambda m: cut(m.parent / "splits.mat"), ["splits.mat"]),
        (lambda m: savemat(m.parent / "splits.mat", {"testNdxs": [[5]]}), ["splits.mat", "4 frames"]),
        (lambda m: savemat(m.parent / "splits.mat", {"testNdxs": [[0]]}), ["splits.mat", "4 frames"]),
        (lambda m: savemat(m.parent / "classMapping40.mat", {"mapClass": [[1, 2]]}), ["mapClass", "894"]),
        (rewrite("depths", None), ["depths (N, W, H)"]),
        (rewrite("depths", np.ones((4, 24, 32), np.float32)), ["depths (N, W, H)"]),
        (rewrite("labels", np.full((4, 32, 24), 999, np.uint16)), ["frame 2", "999"]),
    ],
)
def test_bad_mat_is_one_sentence_with_the_file(mat, damage, words):
    damage(mat)
    with pytest.raises(ValueError) as error:
        NYUv2(mat.parent, "test")[0]
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_mat_in_loader_workers(mat):
    data = NYUv2(mat, "train", classes=13)
    data[0]  # the file is open here when the workers start
    for context in ("fork", "spawn"):
        loaded = list(
            DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=context, collate_fn=_plain)
        )
        assert [name for name, _ in loaded] == ["train/0001", "train/0004"]
        assert all(torch.equal(depth, data[i].depth) for i, (_, depth) in enumerate(loaded))


def _plain(sample):
    return sample.name, sample.depth


# ------------------------------------------------------------------------------------------------------ imports


def test_modules_import_in_a_clean_process_without_transformers():
    """Every module imports by itself, without nbdev and fastcore. A loss and its positives need no extra and do not
    import
    the trainer. transformers stays out until it is used; looked at before training, because lightning-fabric imports
    torchmetrics where it is installed, and that transformers."""
    root = Path(dense_ssl.__file__).parent
    files = [f.relative_to(root.parent).with_suffix("") for f in sorted(root.rglob("*.py"))]
    names = [".".join(f.parts) for f in files if f.name not in ("__init__", "_modidx")]
    ground = [
        n
        for n in names
        if n.split(".")[1] in ("core", "processes", "geometry", "objectives", "data", "positives", "models")
    ]
    assert "dense_ssl.geometry.monocular" in ground and "dense_ssl.data.prepare" in ground
    code = (
        "import importlib, json, sys\nimport dense_ssl.objectives.pixel_contrast, dense_ssl.positives.masks\n"
        "early = [m for m in ('lightning_fabric', 'papermill', 'timm') if m in sys.modules]\n"
        f"for name in {ground!r}: importlib.import_module(name)\n"
        "early += [m for m in ('transformers', 'nbdev', 'fastcore') if m in sys.modules]\n"
        f"for name in {names!r}: importlib.import_module(name)\nprint(json.dumps(early))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout.splitlines()[-1]) == []

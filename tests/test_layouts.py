"""Published data sets as they are unpacked: each miniature tree opens, each way of being broken is one sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader

from dense_ssl.data.catalog import open_data
from dense_ssl.data.check import abouts, check
from dense_ssl.data.miniature import DRAWN, miniature
from dense_ssl.data.views import BadSample, Sample

ROOT = Path(__file__).parents[1]


class Layout(NamedTuple):
    """What a test needs to know of a tree: where labels lie, a number that is none of them, the one that is void, a
    folder of images that can be emptied, what the shape of the labels is, classes."""

    labels: str = ""
    wrong: int = 0
    void: int = 255
    folder: str = ""
    classes: int = 0
    options: dict = {}
    tree: str = ""


LAYOUTS = {
    "cityscapes": Layout("gtFine/train/*/*_labelIds.png", 255, 0, "leftImg8bit/train/ulm", 19),
    "kitti": Layout("training/semantic/*.png", 34, 0, "training/image_2", 19),
    "kitti_raw": Layout(folder="2011_09_26/2011_09_26_drive_0002_sync/image_02/data"),
    "coco": Layout(folder="train2017", classes=7),
    "voc": Layout("VOCdevkit/VOC2012/SegmentationClass/*.png", 21, 255, "VOCdevkit/VOC2012/JPEGImages", 21),
    "ade20k": Layout("ADEChallengeData2016/annotations/training/*.png", 151, 0,
                     "ADEChallengeData2016/images/training", 150),
    "scannet": Layout("scans/scene000[01]_*/label-filt/*.png", 7, 0, "scans/scene0001_01/color", 20, {"every": 1}),
    "scannet_frames_25k": Layout("scannet_frames_25k/scene000[01]_*/label/*.png", 41, 0,
                                 "scannet_frames_25k/scene0001_01/color", 20),
    "viper": Layout("train/cls/*/*.png", 32, 0, "train/img/001", 23),
    "imagenet": Layout(folder="train/n01443537"),
    "camvid": Layout("trainannot/*.png", 12, 11, "train", 11),
    "nyuv2": Layout(classes=40),
    "nyuv2_raw": Layout(folder="kitchen_0029c"),
    "tum": Layout(folder="rgbd_dataset_freiburg3_room/rgb"),
    "seven_scenes": Layout(folder="chess/seq-01"),
    "boreholes": Layout("breakouts/B-2/*.png", 2, 255, "amplitude", 2),
}  # fmt: skip
LABELLED = [name for name, layout in LAYOUTS.items() if layout.labels]


def opened(name: str, root: Path, split: str = "train"):
    return open_data(name.removesuffix("_frames_25k"), split, root, **LAYOUTS[name].options)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    "Each tree, drawn once."
    drawn = {}

    def tree(name):
        if name not in drawn:
            drawn[name] = miniature(name, tmp_path_factory.mktemp(name), 2)
        return drawn[name]

    return tree


@pytest.fixture
def copied(trees, tmp_path):
    "A tree of one's own to break."
    return lambda name: Path(shutil.copytree(trees(name), tmp_path / name))


def sentence(error: Exception, *words: object) -> str:
    "The error is one sentence that has the words."
    text = str(error)
    assert "\n" not in text and len(text) < 500 and text[0] not in "'[{(", text
    assert all(str(w) in text for w in words), f"{words} not in: {text}"
    return text


def read_all(data) -> list[Sample]:
    return [data[k] for k in range(len(data))]


def test_every_data_set_with_a_layout_is_drawn_and_tested():
    assert LAYOUTS.keys() == DRAWN.keys()
    assert abouts().keys() == DRAWN.keys() - {"scannet_frames_25k"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_opens(name, trees):
    layout, data = LAYOUTS[name], opened(name, trees(name))
    for sample in read_all(data):
        size = sample.image.shape[-2:]
        for what in ("depth", "labels", "instances"):
            values = getattr(sample, what)
            assert values is None or values.shape == size, (what, values.shape)
        if layout.classes:
            kept = sample.labels[sample.labels != 255]
            assert len(data.classes) == layout.classes and len(kept) and kept.min() >= 0 and kept.max() < layout.classes
        if sample.instances is not None and (sample.instances >= 0).any():  # every object is of a class that has any
            things = set(sample.labels[sample.instances >= 0].unique().tolist()) - {255}
            assert things <= set(data.things)
        if sample.depth is not None:
            assert sample.depth.isfinite().any() and (sample.depth[sample.depth.isfinite()] > 0).all()
        if sample.K is not None:
            assert sample.K.shape == (3, 3) and 0 < sample.K[0, 2] < size[1]
        if sample.pose is not None:
            torch.testing.assert_close(sample.pose[:3, :3] @ sample.pose[:3, :3].T, torch.eye(3), atol=1e-4, rtol=0)
    colours = getattr(data, "palette", None)
    assert colours is None or len(colours) == layout.classes


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n not in ("scannet_frames_25k", "nyuv2")])
def test_options_that_cannot_be_meant(name, trees):
    for options in ({"size": "small"}, {"size": 0}, {"colours": 3}, {"labels": "perhaps"}, {"depth_kind": "height"}):
        with pytest.raises(ValueError) as error:
            open_data(name, "train", trees(name), **options)
        sentence(error.value, name, *options)
    data = open_data(name, "train", trees(name), size="48", **LAYOUTS[name].options)
    assert min(data[0].image.shape[-2:]) == 48


@pytest.mark.parametrize("name", ["coco", "nyuv2", "tum"])  # those that keep more than paths
def test_workers_read_the_same(name, trees):
    data = opened(name, trees(name))
    loaded = list(DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="spawn"))
    for one, two in zip(loaded, read_all(data), strict=True):
        assert one.depth is not None or one.labels is not None
        for what in ("image", "depth", "labels", "instances", "K", "pose"):
            torch.testing.assert_close(getattr(one, what), getattr(two, what), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_there(name, tmp_path):
    with pytest.raises(ValueError) as error:
        opened(name, tmp_path)
    sentence(error.value, tmp_path)
    with pytest.raises(ValueError) as error:
        opened(name, tmp_path / "nowhere")
    sentence(error.value, "nowhere")


@pytest.mark.parametrize("name", [n for n in LAYOUTS if LAYOUTS[n].folder])
def test_an_empty_folder_of_images(name, copied):
    root = copied(name)
    folder = root / LAYOUTS[name].folder
    assert read_all(opened(name, root))
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "depth" not in p.name and "pose" not in p.name)
    assert files
    for path in files:
        path.unlink()
    with pytest.raises(ValueError) as error:
        read_all(opened(name, root))
    text = sentence(error.value)
    assert str(folder) in text or folder.relative_to(root).as_posix() in text, text


@pytest.mark.parametrize("name", LABELLED)
def test_half_unpacked(name, copied):
    root = copied(name)
    path = sorted(root.glob(LAYOUTS[name].labels))[0]
    path.unlink()
    if name == "boreholes":  # without its map, the image is an unlabelled one
        assert len(opened(name, root)) == 1 and len(opened(name, root, "unlabelled")) == 3
        return
    with pytest.raises(ValueError) as error:
        opened(name, root)
    sentence(error.value, path, "unpack")


@pytest.mark.parametrize("name", LABELLED)
def test_labels_absent(name, copied):
    root = copied(name)
    for path in root.glob(LAYOUTS[name].labels):
        path.unlink()
    with pytest.raises(ValueError) as error:
        opened(name, root)
    sentence(error.value, "breakouts" if name == "boreholes" else "no image has labels")
    if name not in ("boreholes",):
        data = open_data(name.removesuffix("_frames_25k"), "train", root, labels=False, **LAYOUTS[name].options)
        assert data[0].labels is None and data.classes is None


def rewrite(root: Path, name: str, change) -> list[Path]:
    paths = sorted(root.glob(LAYOUTS[name].labels))
    for path in paths:
        with Image.open(path) as image:
            values = np.array(image)
        Image.fromarray(change(values)).save(path)
    return paths


@pytest.mark.parametrize("name", LABELLED)
def test_a_number_that_is_no_label(name, copied):
    "Train ids (with 255) where labelIds belong, a number above the count: never void in silence."
    root = copied(name)

    def change(values):
        values[5, 5] = LAYOUTS[name].wrong
        return values

    paths = rewrite(root, name, change)
    with pytest.raises(BadSample) as error:
        opened(name, root)[0]
    sentence(error.value, paths[0], f"holds {LAYOUTS[name].wrong}")


@pytest.mark.parametrize("name", LABELLED)
def test_sizes_that_differ(name, copied):
    root = copied(name)
    paths = rewrite(root, name, lambda values: values[: len(values) // 2])
    with pytest.raises(BadSample) as error:
        opened(name, root)[0]
    sentence(error.value, paths[0])


@pytest.mark.parametrize("name", LABELLED)
def test_all_void(name, copied):
    root = copied(name)
    rewrite(root, name, lambda values: np.full_like(values, LAYOUTS[name].void))
    lines, good = check(name.removesuffix("_frames_25k"), root)
    assert not good and any("void in every pixel" in line for line in lines), lines


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_damaged_image_is_one_bad_sample(name, copied):
    if name == "nyuv2":
        pytest.skip("its images are one file; what is broken there stands in its notebook")
    root = copied(name)
    data = opened(name, root)
    path = data.root / data.names[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadSample) as error:
        data[0]
    sentence(error.value, path.name)
    assert isinstance(data[1], Sample)


def test_damage_of_kinds_that_only_one_has(copied):
    root = copied("coco")
    path = root / "annotations/instances_train2017.json"
    text = path.read_text()
    path.write_text(text[:-40])
    with pytest.raises(ValueError) as error:
        opened("coco", root)
    sentence(error.value, path, "not JSON")
    path.write_text('{"images": []}')
    with pytest.raises(ValueError) as error:
        opened("coco", root)
    sentence(error.value, path, "annotations")
    path.write_text(text.replace('"category_id": 62', '"category_id": 12'))
    with pytest.raises(ValueError) as error:
        read_all(opened("coco", root))
    sentence(error.value, "category 12")
    root = copied("voc")
    savemat(sorted(root.glob("benchmark_RELEASE/dataset/cls/*.mat"))[0], {"other": 1})
    with pytest.raises(BadSample) as error:
        read_all(opened("voc", root, "train_aug"))
    sentence(error.value, ".mat", "GTcls")
    root = copied("kitti")
    sorted(root.glob("training/calib_cam_to_cam/*.txt"))[0].write_text("nothing: 1\n")
    with pytest.raises(BadSample) as error:
        opened("kitti", root)[0]
    sentence(error.value, "P_rect_02")
    root = copied("cityscapes")
    for path in (root / "gtFine/test").rglob("*labelIds.png"):  # kept back: all void, and never asked for
        assert not np.array(Image.open(path)).any()
    assert opened("cityscapes", root, "hidden").classes is None


def test_crowds_count_neither_for_nor_against(trees):
    "COCO's rule: what is found inside a crowd is no mistake, and a crowd that is missed is none."
    from torchvision.ops import masks_to_boxes

    from dense_ssl.evaluation.detection import CocoAP

    data, crowds = opened("coco", trees("coco")), 0
    ap = {ruled: CocoAP(data.classes) for ruled in (True, False)}
    for sample in read_all(data):
        truth, found = sample.objects, {k: v.clone() for k, v in sample.objects.items() if k != "crowd"}
        for k in truth["crowd"].nonzero()[:, 0].tolist():  # a fifth of it is found, as surely as anything
            crowds += 1
            rows = found["masks"][k].nonzero()[:, 0]
            found["masks"][k, int(rows.float().quantile(0.2)) + 1 :] = False
            found["boxes"][k] = masks_to_boxes(found["masks"][k : k + 1])[0] + torch.tensor([0, 0, 1, 1])
        found["scores"] = torch.where(truth["crowd"], 0.9, 0.8)
        ap[True].add(truth, found)
        ap[False].add({k: v for k, v in truth.items() if k != "crowd"}, found)
    assert crowds and ap[True].compute()["mask"]["AP"] == pytest.approx(1)
    assert ap[False].compute()["mask"]["AP"] < 0.99


def test_a_prepared_tree_belongs_to_an_official_one(trees, tmp_path):
    "Maps that this project makes of an official tree are read back with it."
    from dense_ssl.data.prepare import write_map

    data = opened("cityscapes", trees("cityscapes"))
    for k, name in enumerate(data.names):
        write_map((tmp_path / "depth" / name).with_suffix(".png"), torch.rand(data[k].image.shape[-2:]) + k + 1)
        write_map((tmp_path / "regions" / name).with_suffix(".png"), torch.full(data[k].image.shape[-2:], k))
    (tmp_path / "depth/tree.json").write_text('{"kind": "depth"}')
    both = open_data("cityscapes", "train", data.root, depth=tmp_path / "depth", regions=tmp_path / "regions")
    assert both.depth_kind == "depth" and all((both[k].depth > k + 0.9).all() for k in range(len(both)))
    assert all((both[k].regions == k).all() for k in range(len(both)))


def test_the_command(trees, tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "dense_ssl.data.check", *map(str, words)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    done = run("voc", trees("voc"))
    assert done.returncode == 0 and "2 images of 1464 published" in done.stdout and (tmp_path / "voc.png").is_file()
    done = run("voc", tmp_path)
    assert done.returncode == 1 and "VOCtrainval" in done.stdout
    done = run("nothing", tmp_path)
    assert done.returncode == 1 and "cityscapes" in done.stderr and "Traceback" not in done.stderr

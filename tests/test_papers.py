"""What the four papers say of their experiments, typed from their text a second time, against what the `paper` profile
comes to. A statement that does not hold must be in nbs/10_experiments/deviations.yaml, by its name."""

import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dense_ssl.evaluation.finetuning import deterministic
from dense_ssl.experiments.plan import Row, plan
from dense_ssl.experiments.resolved import placeholders, resolve
from dense_ssl.experiments.rows import read_yaml
from dense_ssl.training.configuration import Launch, Pretrain, parse
from dense_ssl.training.worker import out_of_memory

# (rows, where, what the paper says[, name of the deviation]); rows: a pattern of PAPER.TABLE.ROW
STATEMENTS = [
    # PixDepth, Sec. 4.2: encoders; "for all the segmentation tasks" batch 32; Adam .001, cosine, 80 epochs, frozen
    (r"pixdepth\.T[1235]\..*", "pretrain.encoder", "resnet34"),
    (r"pixdepth\.T4\..*", "pretrain.encoder", "resnet18"),
    (r"pixdepth\..*", "segmentation.decoder", "deeplabv3"),
    (r"pixdepth\..*", "segmentation.frozen", True),
    (r"pixdepth\..*", "segmentation.optimizer", "adam"),
    (r"pixdepth\..*", "segmentation.learning_rate", 0.001),
    (r"pixdepth\..*", "segmentation.schedule", "cosine"),
    (r"pixdepth\..*", "segmentation.epochs", 80),
    (r"pixdepth\..*", "segmentation.batch_size", 32),
    # Sec. 4.2: SGD .9, linear warm-up 20 epochs, cosine, .1; 500 epochs of 256 (ImageNet, ScanNet), 800 of
    # 128 (borehole)
    (r"pixdepth\.T\d\.(?!supervised|pri3d).*", "pretrain.optimizer", "sgd"),
    (r"pixdepth\.T\d\.(?!supervised|pri3d).*", "pretrain.momentum", 0.9),
    (r"pixdepth\.T\d\.(?!supervised|pri3d).*", "pretrain.warmup", 20),
    (r"pixdepth\.T\d\.(?!supervised|pri3d).*", "pretrain.schedule", "cosine"),
    (r"pixdepth\.T\d\.(?!supervised|pri3d).*", "pretrain.lr", 0.1),
    (r"pixdepth\.(T1\.imagenet.*|T3\.(pixpro|pixdepth|stereo)|T4\.(pixpro|pixdepth))", "pretrain.epochs", 500),
    (r"pixdepth\.(T1\.imagenet.*|T3\.(pixpro|pixdepth|stereo)|T4\.(pixpro|pixdepth))", "pretrain.batch_size", 256),
    (r"pixdepth\.(T1\.borehole.*|T2\.pix.*|T5\..*)", "pretrain.epochs", 800),
    (r"pixdepth\.(T1\.borehole.*|T2\.pix.*|T5\..*)", "pretrain.batch_size", 128),
    (r"pixdepth\.(T1\.borehole.*|T2\.pix.*|T5\..*)", "pretrain.images", 27000),  # Sec. 4.1 "nearly 27k"
    (r"pixdepth\.T4\.(pixpro|pixdepth)", "pretrain.images", 2500000, "scannet-frames"),  # Sec. 4.1
    (r"pixdepth\.T3\.(pixpro|pixdepth)", "pretrain.images", 1281167),  # ImageNet-1K
    # Eq. 1: "normalized from 0 to 1"; Sec. 3.2: {.3, .5, .7}; Table 1: T'; Table 5: both
    (r"pixdepth\.T\d\.(pixdepth|stereo|imagenet-0.*|borehole-0.*|d.*)", "pretrain.method_options.unit", "max"),
    (r"pixdepth\.T4\.pixdepth", "pretrain.method_options.distance_thresholds", [0.3, 0.5, 0.7]),
    (r"pixdepth\.T4\.pixdepth", "pretrain.method_options.depth_thresholds", [0.3, 0.5, 0.7]),
    (r"pixdepth\.T1\..*-0\.3", "pretrain.method_options.depth_thresholds", [0.3]),
    (r"pixdepth\.T1\..*-0\.5", "pretrain.method_options.depth_thresholds", [0.5]),
    (r"pixdepth\.T1\..*-0\.7", "pretrain.method_options.depth_thresholds", [0.7]),
    (r"pixdepth\.T5\.d1357-t0\.5", "pretrain.method_options.depth_thresholds", [0.1, 0.3, 0.5, 0.7]),
    (r"pixdepth\.T5\.d0\.3-t37", "pretrain.method_options.distance_thresholds", [0.3, 0.7]),
    (r"pixdepth\.T\d\.(pixpro|pixdepth|d.*)", "pretrain.method_options.out", 256, "channels"),  # PixPro's projector
    (r"pixdepth\.T\d\.(pixpro|pixdepth|d.*)", "pretrain.method_options.hidden", 4096),
    # CPCDR, Sec. 4: ResNet-50, 384x768 and 384x1280; 89,250 and 42,382 frames
    (r"cpcdr\.(T|S6).*", "pretrain.encoder", "resnet50"),
    (r"cpcdr\.T1\.cpcdr-.*-cs-.*", "pretrain.images", 89250),
    (r"cpcdr\.T[12]\.(cpcdr-.*|ours[\d.]*)-kt-.*", "pretrain.images", 42382),
    (r"cpcdr\.T2\.(swav|pixpro|ours[\d.]*)-cs-.*", "pretrain.images", 89250),
    (r"cpcdr\.T1\.(cpcdr|picie).*-cs-on-.*", "pretrain.crop", (384, 768), "picie-crop"),
    (r"cpcdr\.T2\.ours.*-kt-on-.*", "pretrain.crop", (384, 1280)),
    (r"cpcdr\.T[12]\..*-on-cs", "evaluate.size", [384, 768]),
    (r"cpcdr\.T[12]\..*-on-kt", "evaluate.size", [384, 1280]),
    # supplement D: 40 epochs, 8 source images, SGD .9, 1e-4, warm-up 2 to .1, cosine to 1e-5; one 16 GB GPU
    (r"cpcdr\.T[12]\.(cpcdr|ours).*", "pretrain.epochs", 40),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|T4\.|S6\.ours).*", "pretrain.batch_size", 8),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|S6\.ours).*", "pretrain.gpus", 1),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|T4\.|S6\.ours).*", "pretrain.lr", 0.1),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|T4\.|S6\.ours).*", "pretrain.lr_end", 1e-5),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|T4\.|S6\.ours).*", "pretrain.warmup", 2),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|T4\.|S6\.ours).*", "pretrain.weight_decay", 1e-4),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|T4\.|S6\.ours).*", "pretrain.momentum", 0.9),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|T4\.|S6\.ours).*", "pretrain.schedule", "cosine"),
    # supplement D: 1000 prototypes, temperature .1, about 288k features of 16 images, h_t 16, e 1 then 2;
    # all images of a batch
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|T4\.|S6\.ours).*", "pretrain.method_options.prototypes", 1000),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|T4\.|S6\.ours).*", "pretrain.method_options.temperature", 0.1),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|T4\.|S6\.ours).*", "pretrain.method_options.samples_per_scene", 288000 // 16),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|S6\.ours).*", "pretrain.method_options.copy_paste.images", 8),
    (r"cpcdr\.(T1\.cpcdr|T2\.ours|T3\.|S6\.ours).*", "pretrain.method_options.copy_paste.expectation", [1.0, 2.0]),
    (r"cpcdr\.T1\.cpcdr-.*", "pretrain.method_options.weight", 0.5),
    # Sec. 4.3: the 2975 images, 100 epochs, 1/16 of the train set for 6k iterations; supplement F: batch 16 and 288
    (r"cpcdr\.(T3|T4|S6)\.(?!scratch|supervised|swav-(patch|object)).*", "pretrain.images", 2975),
    (r"cpcdr\.S6\.swav-patch", "pretrain.images", 2975 * 18),
    (r"cpcdr\.(T3|T4|S6)\.(?!scratch|supervised).*", "pretrain.epochs", 100),
    (r"cpcdr\.(T3|T4|S6)\..*", "segmentation.iterations", 6000),
    (r"cpcdr\.(T3|T4|S6)\..*", "segmentation.train_share", 1 / 16),
    (r"cpcdr\.S6\.swav-raw", "pretrain.batch_size", 16),
    (r"cpcdr\.S6\.swav-raw", "pretrain.crop", (384, 768)),
    (r"cpcdr\.S6\.swav-(patch|object)", "pretrain.batch_size", 288),
    (r"cpcdr\.S6\.swav-(patch|object)", "pretrain.crop", 128),
    # supplement E: semantic FPN and Mask R-CNN, batch 16, 30k or 6k iterations, 1e-2, 3e-2 to 1e-1, cosine
    # to 1e-5, scale, crop, colour
    (r"cpcdr\.(T[234]|S6)\..*", "segmentation.decoder", "fpn"),
    (r"cpcdr\.(T[234]|S6)\..*", "segmentation.batch_size", 16),
    (r"cpcdr\.T2\..*-on-cs", "segmentation.iterations", 30000),
    (r"cpcdr\.T2\..*-on-kt", "segmentation.iterations", 6000),
    (r"cpcdr\.T2\..*-on-cs", "detection.iterations", 30000),
    (r"cpcdr\.T2\..*-on-kt", "detection.iterations", 6000),
    (r"cpcdr\.T2\..*", "detection.batch_size", 16),
    (r"cpcdr\.(T[234]|S6)\..*", "segmentation.learning_rate", 0.01),
    (r"cpcdr\.(T[234]|S6)\..*", "segmentation.final_learning_rate", 1e-5),
    (r"cpcdr\.T2\..*", "detection.learning_rate", 0.01),
    (r"cpcdr\.(T[234]|S6)\..*", "segmentation.schedule", "cosine"),
    (r"cpcdr\.(T[234]|S6)\..*", "segmentation.colour", True),
    (r"cpcdr\.T2\.scratch-.*", "detection.norm", "frozen", "frozen-batchnorm"),  # detectron2's default
    (r"cpcdr\.T2\.(?!scratch).*", "detection.norm", "frozen"),
    # supplement B: Cityscapes train; Algorithm 1: N/2
    (r"cpcdr\.S5\..*", "evaluate.split", "train"),
    (r"cpcdr\.S5\.ours", "evaluate.options.modules", "half"),
    # auxiliary labels, Sec. 4: ResNet-50 at 1/8, batch 128, 321x361, SGD .9, 1e-4, .01 for 2 epochs, .1 for
    # 18, a tenth after 10, 15, 18
    (r"auxiliary\..*", "pretrain.encoder", "resnet50"),
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.output_stride", 8),
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.batch_size", 128),
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.crop", (321, 361)),
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.epochs", 20),
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.milestones", (10, 15, 18)),
    (r"auxiliary\.T[123]\.(.*ours.*|c\d+)", "pretrain.warmup", 2),
    (r"auxiliary\.T[123]\.(.*ours.*|c\d+)", "pretrain.warmup_lr", 0.01),
    (r"auxiliary\.T[123]\.(.*ours.*|c\d+)", "pretrain.lr", 0.1),
    (r"auxiliary\.T[123]\.(.*ours.*|c\d+)", "pretrain.weight_decay", 1e-4),
    (r"auxiliary\.T[123]\.(.*ours.*|c\d+)", "pretrain.momentum", 0.9),
    # Sec. 3: 10,000 anchors, 40,000 candidates of which 30,000 from the bank of 384 frames, temperature .07, 10, 4, 1
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.method_options.anchors", 10000),
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.method_options.candidates", 40000),
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.method_options.from_bank", 30000),
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.method_options.bank", 384),
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.method_options.temperature", 0.07),
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.method_options.weights", [10.0, 4.0, 1.0]),
    (r"auxiliary\.T[12]\..*ours.*", "pretrain.method_options.out", 128),
    # Table 3, by column
    (r"auxiliary\.T3\.c0[123]", "pretrain.batch_size", 32),
    (r"auxiliary\.T3\.(c0[45789]|c1.)", "pretrain.batch_size", 128),
    (r"auxiliary\.T3\.c06", "pretrain.batch_size", 64),
    (r"auxiliary\.T3\.c06", "pretrain.crop", (473, 473)),
    (r"auxiliary\.T3\.c0[1-7]", "pretrain.epochs", 10),
    (r"auxiliary\.T3\.(c08|c09|c10|c11|c12)", "pretrain.epochs", 20),
    (r"auxiliary\.T3\.c13", "pretrain.epochs", 40),
    (r"auxiliary\.T3\.c0[1-8]", "pretrain.images", 20000),
    (r"auxiliary\.T3\.(c09|c10|c11|c12)", "pretrain.images", 128000),
    (r"auxiliary\.T3\.c13", "pretrain.images", 480000, "frames-of-480k"),
    (r"auxiliary\.T3\.c01", "pretrain.method_options.anchors", 100),
    (r"auxiliary\.T3\.c02", "pretrain.method_options.candidates", 4000),
    # Sec. 3: a ResNet's features are those at 1/32, so extractors are trained there; Table 1: shares; "same
    # hyper-parameters as [13]"
    (r"auxiliary\.T[123]\.(?!.*ours).*(moco|moco-v2-\d+|densecl.*-\d+|pixpro-\d+)", "pretrain.output_stride", 32),
    (r"auxiliary\.T1\..*-10", "segmentation.train_share", 0.1),
    (r"auxiliary\.T1\..*-20", "segmentation.train_share", 0.2),
    (r"auxiliary\.T1\..*-100", "segmentation.train_share", 1.0),
    (r"auxiliary\..*", "segmentation.decoder", "deeplabv3"),
    (r"auxiliary\..*", "segmentation.schedule", "poly"),
    (r"auxiliary\..*", "segmentation.scale", (0.5, 2.0)),
    (r"auxiliary\.(T1\.nyuv2|T3).*", "evaluate.size", [480, 640]),
    # geometric sets, Sec. 4.4: SGD, polynomial, .1, batch 64, from ImageNet, 5 epochs, then 2 with sets
    # alone; 804k pairs
    (r"geosets\.T(1\.(view|geo|view-geo|ours|depth)-50|[23456789]\.(?!scratch|imagenet|moco|.*-imagenet).*|10\..*)",
     "pretrain.encoder", "resnet50"),
    (r"geosets\.T[3-8]\.(.*scratch|.*imagenet).*", "pretrain.encoder", "resnet50"),
    (r"geosets\.T1\..*-18", "pretrain.encoder", "resnet18"),
    (r"geosets\.T.*(view|geo|ours|k0\d|point|truth).*", "pretrain.batch_size", 64),
    (r"geosets\.T.*(view|geo|ours|k0\d|point|truth).*", "pretrain.lr", 0.1),
    (r"geosets\.T.*(view|geo|ours|k0\d|point|truth).*", "pretrain.schedule", "poly"),
    (r"geosets\.T.*(view|geo|ours|k0\d|point|truth).*", "pretrain.images", 804000),
    (r"geosets\.T[1-8]\.(.*-)?(view|geo|view-geo)(-\d+)?", "pretrain.weights", "IMAGENET1K_V1"),
    (r"geosets\.T[1-8]\.(.*-)?(view|geo|view-geo)(-\d+)?", "pretrain.epochs", 5),
    (r"geosets\.T\d+\.((.*-)?ours.*|k0\d|point|truth)", "pretrain.epochs", 2),
    (r"geosets\.T\d+\.((.*-)?ours.*|k0\d|point|truth)", "pretrain.method_options.stage_one", 0),
    (r"geosets\.T10\.(view|geo|view-geo|ours)", "pretrain.epochs", 2),
    (r"geosets\.T9\.point", "pretrain.method_options.aggregate", "points"),  # Sec. 5.2
    # Sec. 4.1, 5.1: U-Net; .01 "instead of 0.1" on NYUv2; Table 2: shares; Table 3: decoders
    (r"geosets\.T(1|2|6|9|10)\..*", "segmentation.decoder", "unet"),
    (r"geosets\.T(1|2|3|9|10)\..*", "segmentation.learning_rate", 0.1),
    (r"geosets\.T6\..*", "segmentation.learning_rate", 0.01),
    (r"geosets\.T2\..*-20", "segmentation.train_share", 0.2),
    (r"geosets\.T2\..*-80", "segmentation.train_share", 0.8),
    (r"geosets\.T3\.deeplabv3plus-.*", "segmentation.decoder", "deeplabv3plus"),
    (r"geosets\.T3\.pspnet-.*", "segmentation.decoder", "pspnet"),
]


@cache
def resolved() -> dict[str, dict[str, Any]]:
    "Every row of the profile that is not quoted, by name."
    with placeholders("paper") as roots, tempfile.TemporaryDirectory() as folder:
        rows: list[Row] = plan("paper", None, roots, [0], Path(folder), gpus=8, launch={"processes": 8, "workers": 4})
        assert {row.problem for row in rows} == {None, "quoted from the paper"}
        return {row.id: resolve(row, "paper") for row in rows if not row.problem}


def plain(value: Any) -> Any:
    "A tuple as a list, and its numbers as those of a text."
    return [float(v) if isinstance(v, int | float) else v for v in value] if isinstance(value, tuple | list) else value


def at(found: dict[str, Any], path: str) -> Any:
    "The value at `path`, keys joined by points."
    for key in path.split("."):
        found = found[key]
    return plain(found)


@pytest.mark.parametrize("pattern, path, said, name", [(*s, None)[:4] for s in STATEMENTS], ids=lambda v: str(v)[:60])
def test_what_a_paper_says(pattern, path, said, name):
    rows = {k: v for k, v in resolved().items() if re.fullmatch(pattern, k)}
    assert rows, f"no row is called {pattern}"
    wrong = {k: found for k, v in rows.items() if (found := at(v, path)) != plain(said)}
    if name is None:
        assert not wrong, f"{path} is not {said}: {dict(list(wrong.items())[:3])}"
    else:
        assert wrong, f"{path} is what the paper says; take {name} from the list of deviations"
        assert name in read_yaml("deviations.yaml")[pattern.split("\\")[0]]


def test_deviations_are_sentences():
    "Each is of a paper that there is, and says something; what is open says what is taken."
    found = read_yaml("deviations.yaml")
    assert found.keys() == read_yaml("profiles.yaml")["paper"]["tables"].keys()
    for paper in found.values():
        for text in [*(v for k, v in paper.items() if k != "open"), *paper["open"].values()]:
            assert isinstance(text, str) and text.endswith(".") and len(text) > 10


def test_workers_reach_evaluation():
    with placeholders("paper") as roots, tempfile.TemporaryDirectory() as folder:
        (row,) = plan("paper", {"pixdepth": {"T3": ["pixdepth"]}}, roots, [0], Path(folder), launch={"workers": 4})
    assert row.stages["evaluate"].parameters["workers"] == 4 and "workers" not in row.stages["evaluate"].identity


def test_full_memory_says_what_to_lower():
    "Pre-training and evaluation: one sentence, which names what to lower and what stays."
    values = {"data": {"name": "room"}, "method": "pixpro", "batch_size": 256, "crop": 224, "steps": 10}
    said = out_of_memory(parse(Pretrain, values), Launch(processes=4))
    assert "full with 64 samples of crop 224" in said and "set accumulate to 2 (batch_size 256 and lr 0.1 stay" in said
    with pytest.raises(ValueError, match="lower the protocol's batch_size, crop or size"), deterministic("cuda"):
        raise torch.OutOfMemoryError("CUDA out of memory")

"""Whatever a file of a user holds, its reader gives an answer, or one sentence that names the file or the key.

Good files of every kind are damaged as a download, an editor, a disk or a hand damages them, each case by its number
alone. `MALFORMED=1000` in the environment makes that many cases (60 without it); what they came to is printed at the
end (`pytest -s`), and written to the file that MALFORMED_OUT names. A reader is one entry of READERS.
"""

import argparse
import io
import json
import math
import os
import re
import signal
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from scipy.io import savemat
from torch import nn

from dense_ssl.core import read_json
from dense_ssl.data.cityscapes import read_city_camera
from dense_ssl.data.coco import Coco
from dense_ssl.data.folders import ImageFolder, read_ids, read_image, read_labels
from dense_ssl.data.kitti import read_calibration
from dense_ssl.data.prepare import read_job
from dense_ssl.data.scannet import raw_table
from dense_ssl.data.sequences import _scan_intrinsics, read_pose
from dense_ssl.data.trajectories import read_table, read_trajectory, seven_sequences
from dense_ssl.data.voc import read_sbd
from dense_ssl.files import read_lines
from dense_ssl.geometry.camera import read_intrinsics
from dense_ssl.geometry.depth import StoredDepth, read_depth, read_stored, write_depth_png
from dense_ssl.geometry.segments import read_mesh, read_segments
from dense_ssl.models.checkpoint import Checkpoint
from dense_ssl.models.encoders import load_weights
from dense_ssl.training.configuration import Launch, Pretrain, parse

CASES, SECONDS = int(os.environ.get("MALFORMED", "60")), 20
SIZE = (12, 16)
found: dict[str, Counter[str]] = defaultdict(Counter)


class Reader(NamedTuple):
    """Good files by name, how one is read, what holds for an answer, and words of which a sentence may have one instead
    of the file's name (keys, options)."""

    files: dict[str, bytes]
    read: Callable[[Path], Any]
    holds: Callable[[Any], bool]
    words: tuple[str, ...] = ()


def picture(array: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, format=kind, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def depth_png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    write_depth_png(file, array)
    return file.getvalue()


def ply(binary: bool) -> bytes:
    "A tetrahedron."
    points, faces = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
    head = f"ply\nformat {'binary_little_endian' if binary else 'ascii'} 1.0\nelement vertex 4\n"
    head += "property float x\nproperty float y\nproperty float z\nelement face 4\n"
    head += "property list uchar int vertex_indices\nend_header\n"
    if binary:
        rows = b"".join(struct.pack("<3f", *p) for p in points) + b"".join(struct.pack("<B3i", 3, *f) for f in faces)
        return head.encode() + rows
    rows = [" ".join(map(str, p)) for p in points] + [" ".join(map(str, (3, *f))) for f in faces]
    return (head + "\n".join(rows) + "\n").encode()


rng = np.random.default_rng(0)
COLOURS, GREY = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), rng.integers(1, 60000, SIZE, dtype=np.uint16)
IDS, METRES = rng.integers(0, 5, SIZE, dtype=np.uint8), rng.uniform(1, 9, SIZE).astype(np.float32)
EXIF = Image.Exif()
EXIF[0x0112] = 6
K = [[14.0, 0, 7.5], [0, 14, 5.5], [0, 0, 1]]
POSE = "\n".join(" ".join(map(str, row)) for row in [[0, -1, 0, 1.5], [1, 0, 0, -2], [0, 0, 1, 0.25], [0, 0, 0, 1]])


def one_image(folder: Path) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for name in ("a", "b"):
        (folder / "images" / f"{name}.png").write_bytes(picture(COLOURS, "PNG"))
    return folder / "images"


def with_tree(path: Path) -> ImageFolder:
    "A folder whose depth tree has this tree.json."
    (path.parent / "a.png").write_bytes(picture(GREY, "PNG"))
    return ImageFolder(one_image(path.parent), depth=path.parent)


def map_of(kinds: str, shape: tuple[int, int] | None = None) -> Callable[[torch.Tensor], bool]:
    return lambda x: x.ndim == 2 and x.numel() > 0 and str(x.dtype) == f"torch.{kinds}"


READERS: dict[str, Reader] = {
    "image": Reader(
        {
            "rgb.png": picture(COLOURS, "PNG"),
            "alpha.png": picture(COLOURS, "PNG", "RGBA"),
            "palette.png": picture(COLOURS, "PNG", "P", transparency=0),
            "turned.jpg": picture(COLOURS, "JPEG", exif=EXIF),
            "grey.jpg": picture(COLOURS, "JPEG", "L"),
            "cmyk.jpg": picture(COLOURS, "JPEG", "CMYK"),
            "a.webp": picture(COLOURS, "WEBP"),
            "a.bmp": picture(COLOURS, "BMP"),
            "deep.png": picture(GREY, "PNG"),
        },
        read_image,
        lambda x: x.dtype == torch.uint8 and x.ndim == 3 and x.shape[0] == 3 and x.numel() > 0,
    ),
    "depth": Reader(
        {"d.png": picture(GREY, "PNG"), "own.png": depth_png(METRES), "f.npy": npy(METRES), "i.npy": npy(GREY)},
        lambda path: (read_depth(path), read_stored(path, StoredDepth(range=(1, 99))))[0],
        lambda x: map_of("float32")(x) and not x.isinf().any().item(),
    ),
    "label": Reader(
        {"l.png": picture(IDS, "PNG"), "p.png": picture(IDS, "PNG", "P"), "l.npy": npy(IDS.astype(np.int32))},
        lambda path: (read_ids(path, 255), read_labels(path, ids={0: 0, 3: 1}), read_labels(path, 5, void=(4,)))[2],
        lambda x: map_of("int64")(x) and ((x == 255) | ((x >= 0) & (x < 5))).all().item(),
    ),
    "list": Reader(
        {
            "train.txt": b"# train\na.png\nb\n",
            "crlf.txt": b"\xef\xbb\xbfa.png\r\nb.png\r\n",
            "labels.txt": b"a 0\nb 1\n",
        },
        lambda path: (read_lines(path), ImageFolder(one_image(path.parent), listed=path).names)[1],
        lambda names: 0 < len(names) <= 2 and set(names) <= {"a.png", "b.png"},
    ),
    "pose": Reader(
        {"0.pose.txt": POSE.encode(), "commas.txt": POSE.replace(" ", ", ").encode()},
        read_pose,
        lambda x: x.shape == (4, 4) and x.isfinite().all().item() and abs(torch.linalg.det(x[:3, :3]) - 1) < 0.1,
    ),
    "intrinsics": Reader(
        {"camera.json": json.dumps({"width": 16, "height": 12, "K": K}).encode()},
        lambda path: read_intrinsics(path, SIZE),
        lambda x: x.shape == (3, 3) and x.isfinite().all().item() and x[0, 0] > 0,
    ),
    "scan intrinsics": Reader(
        {"intrinsics_depth.txt": "\n".join(" ".join(map(str, row)) for row in K).encode()},
        lambda path: _scan_intrinsics(path, SIZE, SIZE),
        lambda x: x.shape == (3, 3) and x.isfinite().all().item() and x[0, 0] > 0,
    ),
    "mesh": Reader(
        {"ascii.ply": ply(False), "binary.ply": ply(True)},
        read_mesh,
        lambda x: np.isfinite(x[0]).all() and len(x[1]) > 0 and x[1].min() >= 0 and x[1].max() < len(x[0]),
    ),
    "segments": Reader(
        {"s.segs.json": json.dumps({"sceneId": "s", "segIndices": [3, 3, 7, -1]}).encode()},
        lambda path: read_segments(path, 4),
        lambda x: x.shape == (4,) and x.min() >= -1,
    ),
    "tree.json": Reader(
        {"tree.json": b'{"kind": "disparity", "suffix": ".png"}'},
        with_tree,
        lambda folder: folder.depth_kind in ("depth", "disparity", "time"),
        ("depth_kind",),
    ),
    "job": Reader(
        {"job.json": b'{"factory": "a.b:c", "images": {"root": "x"}, "out": "y", "strict": false}'},
        read_job,
        lambda job: isinstance(job.out, str) and isinstance(job.images, dict),
    ),
}
def mat(**values: Any) -> bytes:
    file = io.BytesIO()
    savemat(file, values)
    return file.getvalue()


def seven(path: Path) -> list[Path]:
    (path.parent / "seq-01").mkdir(exist_ok=True)
    return seven_sequences(path.parent, "train")


CALIBRATION = "calib_time: 09-Jan-2012\nS_rect_02: 16.0 12.0\nP_rect_02: 14 0 7.5 1 0 14 5.5 0 0 0 1 0\n"
CITY = {"extrinsic": {"baseline": 0.2}, "intrinsic": {"fx": 2262.5, "fy": 2265.3, "u0": 1096.9, "v0": 513.1}}
OUTLINED = {"id": 1, "image_id": 9, "category_id": 62, "bbox": [2, 2, 5, 4], "area": 20, "iscrowd": 0,
            "segmentation": [[2, 2, 7, 2, 7, 6, 2, 6]]}
COCO_JSON = {"images": [{"id": 9, "file_name": "9.jpg", "height": 12, "width": 16}], "annotations": [OUTLINED],
             "categories": [{"id": 62, "name": "chair"}]}


def coco_root(path: Path) -> Any:
    "The only sample of a COCO tree whose annotations are this file."
    for place, data in (("annotations/instances_train2017.json", path), ("train2017/9.jpg", None)):
        (path.parent / place).parent.mkdir(exist_ok=True)
        if data is None:
            (path.parent / place).write_bytes(picture(COLOURS, "JPEG"))
        elif path.exists():
            (path.parent / place).symlink_to(path)
    return Coco(path.parent)[0]


READERS |= {
    "trajectory": Reader(
        {"groundtruth.txt": b"# t x y z q\n1.5 1 2 3 0 0 0 1\n2.0 0 0 0 0 0 0.70710678 0.70710678\n"},
        read_trajectory,
        lambda x: len(x[0]) == len(x[1]) > 0 and x[1].isfinite().all().item(),
    ),
    "frames of TUM": Reader(
        {"rgb.txt": b"# time file\n1.5 rgb/1.5.png\n2.0 rgb/2.0.png\n"},
        lambda path: read_table(path, "time", "file"),
        lambda x: x[0].shape == (len(x[1]), 1) and np.isfinite(x[0]).all(),
    ),
    "sequences of 7-Scenes": Reader(
        {"TrainSplit.txt": b"sequence1\n"}, seven, lambda found: {p.name for p in found} == {"seq-01"}, ("seq-",)
    ),
    "calibration": Reader(
        {"calib_cam_to_cam.txt": CALIBRATION.encode()},
        lambda path: read_calibration(path, SIZE),
        lambda x: x.shape == (3, 3) and x.isfinite().all().item(),
    ),
    "camera of Cityscapes": Reader(
        {"camera.json": json.dumps(CITY).encode()},
        lambda path: read_city_camera(path, (1024, 2048)),
        lambda x: x[0].shape == (3, 3) and x[0].isfinite().all().item() and math.isfinite(x[1]) and x[1] > 0,
    ),
    "labels of ScanNet": Reader(
        {"labels.tsv": b"id\traw_category\tnyu40id\n3\twall\t1\n43\tfloor\t2\n"},
        raw_table,
        lambda table: table[0] == 255 and all(0 <= v < 20 or v == 255 for v in table.values()),
    ),
    "objects of COCO": Reader(
        {"instances.json": json.dumps(COCO_JSON).encode()},
        coco_root,
        lambda sample: sample.labels.shape == SIZE and len(sample.objects["boxes"]) == len(sample.objects["masks"]),
        ("instances_train2017.json", "9.jpg"),
    ),
    "map of SBD": Reader(
        {"a.mat": mat(GTcls={"Segmentation": IDS})}, lambda path: read_sbd(path, "GTcls"), map_of("int64")
    ),
}


def torch_file(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def loaded(path: Path) -> dict[str, torch.Tensor]:
    load_weights(module := network(), path)
    return module.state_dict()


def resumed(path: Path) -> Any:
    module = nn.Linear(2, 3)
    parts = {"module": module, "optimizer": torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)}
    return Checkpoint(path, 0, **parts).resume(step=0)["step"]


def checkpoint() -> bytes:
    module = nn.Linear(2, 3)
    return torch_file({"fingerprint": "", "step": 7, "module": module.state_dict(),
                       "optimizer": torch.optim.SGD(module.parameters(), 0.1, momentum=0.9).state_dict()})


WEIGHTS = network().state_dict()
CONFIG = {"data": {"name": "room", "options": {"count": 4, "size": [48, 64]}}, "method": "pixdepth", "steps": 2,
          "method_options": {"hidden": 32, "out": 30, "depth_thresholds": None, "distance_thresholds": [0.7]}}
READERS |= {
    "weights": Reader(
        {
            "a.safetensors": safetensors.torch.save(dict(WEIGHTS)),
            "wrapped.pth.tar": torch_file({"opt": argparse.Namespace(a=1),
                                           "model": {f"module.{k}": v for k, v in WEIGHTS.items()}}),
            "legacy.pt": torch_file(WEIGHTS, _use_new_zipfile_serialization=False),
        },
        loaded,
        lambda state: all(v.isfinite().all() for v in state.values()),
    ),
    "checkpoint": Reader({"last.pt": checkpoint()}, resumed, lambda step: isinstance(step, int)),
    "options": Reader(
        {"params.json": json.dumps(CONFIG).encode()},
        lambda path: parse(Pretrain, read_json(path)),
        lambda config: config.steps is None or config.steps > 0,
        ("configuration", "method", "dataset"),
    ),
    "launch": Reader(
        {"launch.json": json.dumps(Launch().model_dump()).encode()},
        lambda path: parse(Launch, read_json(path), "launch"),
        lambda launch: launch.processes > 0,
        ("launch",),
    ),
}
TOKENS = ["nan", "inf", "-inf", "1e400", "1e-320", "-0", "-1", "0", "1", "255", "65536", "99999999999999999999", "1.5"]
TOKENS += ["x", "null", "true", "{}", "[]", '""', "''", "#", "a.png", "ü"]
FOREIGN = [good for reader in READERS.values() for good in reader.files.values()]


def damaged(data: bytes, draw: np.random.Generator) -> bytes:
    "The bytes as something that happens to files leaves them."
    at, length = int(draw.integers(0, len(data) + 1)), int(draw.integers(1, 9))
    if not data:
        return draw.bytes(length)
    kind = draw.choice(["cut", "flip", "flip", "gap", "insert", "zeros", "other", *["token"] * 3, "text", "twice"])
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        changed = bytearray(data)
        for where in draw.integers(0, len(data), length):
            changed[where] = draw.integers(0, 256)
        return bytes(changed)
    if kind in ("gap", "insert", "zeros"):
        new = {"gap": b"", "insert": draw.bytes(length), "zeros": bytes(length)}[kind]
        return data[:at] + new + data[at + (0 if kind == "insert" else length) :]
    if kind == "other":
        return FOREIGN[draw.integers(len(FOREIGN))]
    if kind == "token":  # one number or word of a text, or a stretch of bytes, becomes another one
        words = list(re.finditer(rb"[^\s,:{}\[\]]+", data))
        word = words[draw.integers(len(words))] if words else None
        new = TOKENS[draw.integers(len(TOKENS))].encode()
        return data[: word.start()] + new + data[word.end() :] if word else new
    if kind == "text":
        coding = draw.choice(["utf-16", "latin-1", "utf-8-sig"])
        return data.decode("latin-1").encode(coding, "replace")
    return data + data


class Late(BaseException):
    """Nothing that a reader may catch."""


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise Late(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def spoil(path: Path, data: bytes, draw: np.random.Generator) -> None:
    "Write the damaged file; now and then there is none, or a folder or a pipe of that name."
    kind = draw.random()
    if kind < 0.02:
        path.mkdir()
    elif kind < 0.04:
        os.mkfifo(path)
    elif kind > 0.02 + 0.04:
        for _ in range(int(draw.integers(1, 3))):
            data = damaged(data, draw) or b""
        path.write_bytes(data)


def judge(name: str, reader: Reader, path: Path) -> str:
    "The kind of answer; AssertionError for anything but an answer that holds or one sentence that names the file."
    before = set(path.parent.rglob("*"))
    try:
        with in_time(SECONDS):
            value = reader.read(path)
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        assert type(error).__name__ in ("ValueError", "BadSample", "FileNotFoundError"), f"{type(error)}: {text}"
        assert any(word in text for word in (path.name, *reader.words)), f"names no file: {text}"
        assert "\n" not in text and len(text) < 1200, f"more than a sentence: {text}"
        return re.sub(r"'[^']*'|\"[^\"]*\"|\[[^]]*]|\S*/\S*|[-+]?[\d.]+(e[-+]?\d+)?|nan|inf", "_", text)[:200]
    assert reader.holds(value), f"answers {value!r}"
    left = set(path.parent.rglob("*.tmp")) - before
    assert not left, f"left {left}"
    return "an answer"


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    yield
    lines = {name: {"cases": kinds.total(), "answers": kinds["an answer"], "sentences": len(set(kinds) - {"an answer"})}
             for name, kinds in sorted(found.items())}
    print("", *(f"{name}: {line}" for name, line in lines.items()), sep="\n")
    print(f"{sum(k.total() for k in found.values())} cases, {len(set().union(*found.values()))} kinds of answers")
    if out := os.environ.get("MALFORMED_OUT"):
        Path(out).write_text(json.dumps({"counts": lines, "kinds": {k: dict(v) for k, v in found.items()}}, indent=1))


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_read(name, tmp_path):
    reader = READERS[name]
    for file, data in reader.files.items():
        (tmp_path / file).write_bytes(data)
        if file != "deep.png":  # 16 bits are an answer of its own
            assert reader.holds(reader.read(tmp_path / file)), file


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.filterwarnings("ignore")
def test_an_answer_or_one_sentence(case, tmp_path):
    names, draw = list(READERS), np.random.default_rng(case)
    name = names[case % len(names)]
    reader = READERS[name]
    file = list(reader.files)[draw.integers(len(reader.files))]
    path = tmp_path / file
    spoil(path, reader.files[file], draw)
    found[name][judge(name, reader, path)] += 1


def test_json_is_named(tmp_path):
    "The one reader of JSON: deep nesting, a byte-order mark, a folder."
    for data, good in ((b"[" * 100000, False), (b"\xef\xbb\xbf{}", True), (b"\xff\xfe{\0}\0", True), (b"", False)):
        path = tmp_path / "x.json"
        path.write_bytes(data)
        if good:
            assert read_json(path) == {}
        else:
            with pytest.raises(ValueError, match="x.json"):
                read_json(path)
    with pytest.raises(ValueError, match="is no file"):
        read_json(tmp_path)

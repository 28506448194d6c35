"""The evaluation room where a notebook cannot test it: processes that are killed, damaged files, unusable data."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dense_ssl.core import read_json
from dense_ssl.data.catalog import open_data
from dense_ssl.data.views import BadSample, Sample, normalize_image
from dense_ssl.evaluation.catalog import run_protocol
from dense_ssl.evaluation.coherence import RawColours, object_coherence
from dense_ssl.evaluation.floors import floor_encoders
from dense_ssl.evaluation.metrics import miou
from dense_ssl.evaluation.probe import linear_probe
from dense_ssl.evaluation.segmentation import Protocol, train_segmentation
from dense_ssl.models.encoders import build_encoder

PROTOCOL = Protocol(size=(32, 48), decoder_channels=16, atrous_rates=(1, 2, 3), batch_size=4, epochs=6, patience=6)


class Squares:
    """Bright squares on dark ground; `change` alters the labels, `bad` lists indices that cannot be read."""

    version, classes = "1", ["ground", "square"]

    def __init__(self, split, count=12, change=lambda labels: labels, bad=(), wait=0.0):
        self.name, self.split, self.count, self.change, self.bad, self.wait = "squares", split, count, change, bad, wait

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        time.sleep(self.wait)
        if i in self.bad:
            raise BadSample(f"squares/{i}.jpg is truncated")
        g = torch.Generator().manual_seed(i + 1000 * (self.split == "test"))
        y, x = torch.randint(0, 16, (2,), generator=g).tolist()
        labels = torch.zeros(32, 48, dtype=torch.int64)
        labels[y : y + 16, x : x + 24] = 1
        image = (60 + 100 * labels + 30 * torch.randn(3, 32, 48, generator=g)).clamp(0, 255).to(torch.uint8)
        return Sample(image, f"squares/{i}", labels=self.change(labels))


def encoder(seed=0, name="resnet18"):
    torch.manual_seed(seed)
    return build_encoder(name)


def numbers(result):
    return {k: v for k, v in result.items() if k != "seconds"}


def child(folder, frozen):
    """What the killed process runs: a training that saves after every epoch."""
    protocol = PROTOCOL.model_copy(update={"frozen": frozen, "flip": not frozen})
    return train_segmentation(encoder(), Squares("train"), Squares("test", 4), protocol, folder, checkpoint_seconds=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_killed_and_started_again_gives_the_same_numbers(tmp_path, frozen):
    torch.set_num_threads(1)
    whole = child(tmp_path / "whole", frozen)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    call = f"t.child({str(tmp_path / 'cut')!r}, {frozen})"
    code = f"import torch; torch.set_num_threads(1); import test_evaluation as t; {call}"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    deadline = time.time() + 120
    while not (tmp_path / "cut" / "checkpoint.pt").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, "the process ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "result.json").exists()
    reached = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["epoch"]
    assert 1 <= reached <= PROTOCOL.epochs
    again = child(tmp_path / "cut", frozen)
    assert numbers(again) | {"cached": 0} == numbers(whole) | {"cached": 0}
    a, b = ((tmp_path / run / "weights.safetensors").read_bytes() for run in ("whole", "cut"))
    assert a == b


def test_interrupted_in_every_epoch(tmp_path, monkeypatch):
    from dense_ssl.evaluation import segmentation

    whole, epoch = child(tmp_path / "whole", False), segmentation._train_epoch
    for stop in range(1, PROTOCOL.epochs):

        def interrupted(run, stop=stop):
            if run.epoch == stop:
                raise KeyboardInterrupt
            return epoch(run)

        monkeypatch.setattr(segmentation, "_train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            child(tmp_path / "cut", False)
        monkeypatch.setattr(segmentation, "_train_epoch", epoch)
    assert numbers(child(tmp_path / "cut", False)) == numbers(whole)


def test_damaged_checkpoint_and_foreign_folder(tmp_path, monkeypatch):
    from dense_ssl.evaluation import segmentation

    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "_test", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            child(tmp_path, True)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(ValueError, match="another encoder"):
        train_segmentation(encoder(1), Squares("train"), Squares("test", 4), PROTOCOL, tmp_path)
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    with pytest.raises(ValueError, match="checkpoint.pt is damaged"):
        child(tmp_path, True)


def test_checkpoint_executes_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").touch, ())

    torch.save({"fingerprint": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint.pt is not a plain weights file"):
        child(tmp_path, True)
    assert not (tmp_path / "sprung").exists()


BAD = [
    (lambda t: t * 0 + 255, "no labelled pixel"),
    (lambda t: t + 1, "has label 2; needed: 0 to 1"),
    (lambda t: t - 1, "has label -1"),
    (lambda t: None, "has no labels"),
]


@pytest.mark.parametrize("change, message", BAD)
@pytest.mark.parametrize("split", ["train", "test"])
def test_unusable_labels(tmp_path, change, message, split):
    data = {s: Squares(s, 6, change if s == split else (lambda t: t)) for s in ("train", "test")}
    protocol = PROTOCOL.model_copy(update={"epochs": 1})
    with pytest.raises(ValueError, match=message):
        train_segmentation(encoder(), data["train"], data["test"], protocol, tmp_path)
    assert not (tmp_path / "result.json").exists()
    with pytest.raises(ValueError, match=message):
        linear_probe(encoder(), data["train"], data["test"], (32, 48))


def test_partly_void_and_bad_images_are_survived_and_named(tmp_path):
    def mostly_void(labels):
        return labels if labels[:8].any() else labels * 0 + 255

    data = Squares("train", 12, mostly_void, bad=(3,)), Squares("test", 6, mostly_void, bad=(0, 5))
    result = train_segmentation(encoder(), *data, PROTOCOL.model_copy(update={"epochs": 2}), tmp_path, pictures=2)
    assert result["skipped"] == [
        "squares/3.jpg is truncated",
        "squares/0.jpg is truncated",
        "squares/5.jpg is truncated",
    ]
    assert result["images"]["test"] == 4 and 0 <= result["miou"] <= 1
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 2
    assert linear_probe(encoder(), *data, (32, 48))["skipped"] == result["skipped"]
    coherent = object_coherence(RawColours(8), data[1], (32, 48), similarity="distance")
    assert coherent["images"] == 4 and len(coherent["skipped"]) == 2 and coherent["class"]["auc"] > 0.9


def test_other_encoders_and_classes(tmp_path):
    vit = SimpleNamespace(name="timm/vit_tiny_patch16_224", body=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Use the linear probe|use the linear probe"):
        train_segmentation(vit, Squares("train"), Squares("test"), PROTOCOL, tmp_path)
    other = Squares("test")
    other.classes = ["ground", "circle"]
    with pytest.raises(ValueError, match="needed: the same"):
        train_segmentation(encoder(), Squares("train"), other, PROTOCOL, tmp_path)
    with pytest.raises(ValueError, match="void"):
        miou([torch.zeros(2, 2, dtype=torch.int64)], [torch.full((2, 2), 255)], 2)


def test_other_weights_break_nothing_silently(tmp_path):
    broken = encoder()
    with torch.no_grad():
        broken.body.conv1.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="epoch 1, step 1"):
        train_segmentation(broken, Squares("train"), Squares("test"), PROTOCOL, tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        linear_probe(broken, Squares("train"), Squares("test"), (32, 48))
    assert not (tmp_path / "result.json").exists()


def test_finished_run_is_read(tmp_path):
    first = child(tmp_path, True)
    data = Squares("train", bad=range(12)), Squares("test", 4, bad=range(4))  # would fail if it were read again
    assert train_segmentation(encoder(), *data, PROTOCOL, tmp_path) == first == read_json(tmp_path / "result.json")


LEARNS = ["knn", "probe_segmentation", "probe_depth", "probe_normals"]


@pytest.mark.parametrize("protocol", ["knn", "probe_segmentation"])
def test_a_prediction_does_not_depend_on_the_truth_of_the_test_split(protocol):
    """Of K tests that differ by a shift of all classes each pixel is right exactly once, whatever was predicted; with a
    look at the truth it would be right more often."""
    train = Squares("train", 8)
    train.classes = ["ground", "square", "nothing"]
    for name, floor in floor_encoders(encoder(), 0).items():
        right = 0.0
        for shift in range(3):
            test = Squares("test", 4, lambda labels, shift=shift: (labels + shift) % 3)
            test.classes = train.classes
            right += run_protocol(protocol, floor, train, test, (32, 48), progress=False)["pixel_accuracy"]
        assert abs(right - 1) < 1e-6, (name, right)


@pytest.mark.parametrize("protocol", [*LEARNS, "correspondence"])
def test_an_encoder_is_shown_images_and_a_test_image_is_never_learned_from(protocol):
    train, test = (open_data("room", split, count=4, size=(24, 32)) for split in ("train", "test"))
    seen = []

    class Watched(RawColours):
        def forward(self, image):
            seen.extend(image)
            return super().forward(image)

    options = {"gaps": (1, 2)} if protocol == "correspondence" else {}
    run_protocol(protocol, Watched(4), train, test, (24, 32), progress=False, **options)
    shown = {one.contiguous().numpy().tobytes() for one in seen}
    images = [normalize_image(split[i].image) for split in (train, test) for i in range(4)]
    assert shown <= {one.numpy().tobytes() for one in images}
    if protocol in LEARNS:
        assert len(seen) == 8
        with pytest.raises(ValueError, match="of the train split; needs splits that share no image"):
            run_protocol(protocol, RawColours(4), train, train, (24, 32), progress=False)

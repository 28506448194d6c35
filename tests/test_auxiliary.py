"""Auxiliary-label training in real processes: labels from disk, killed and resumed with its memory bank, fine-tuned
from its decoder."""

import pytest
from PIL import Image
from test_training import QUICK, kill_at, losses, run_here, same_bits

from dense_ssl.data.catalog import open_data
from dense_ssl.data.prepare import Job, run_job
from dense_ssl.evaluation.segmentation import Protocol, train_segmentation
from dense_ssl.methods.catalog import load_method
from dense_ssl.models.encoders import load_encoder
from dense_ssl.models.extractors import build_extractor
from dense_ssl.positives.auxiliary_labels import auxiliary_job, fit_labels

OPTIONS = {
    "anchors": 60,
    "candidates": 200,
    "from_bank": 120,
    "bank": 6,
    "bank_rows": 30,
    "channels": 16,
    "atrous_rates": (1, 2, 3),
    "out": 8,
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A folder of pictures of the room world with trees of auxiliary labels and superpixels, as 08_prepare_auxiliary
    writes them."""
    folder, world = tmp_path_factory.mktemp("labelled"), open_data("room", "train", count=8, size=(48, 64))
    (folder / "images").mkdir()
    for i in range(8):
        Image.fromarray(world[i].image.permute(1, 2, 0).numpy()).save(folder / "images" / f"{i}.png")
    images = {"root": str(folder / "images")}
    fit_labels(
        build_extractor("resnet18", scales=[1, 2]),
        open_data("folder", **images),
        10,
        folder / "centres",
        progress=False,
    )
    run_job(auxiliary_job(folder / "centres", images, folder / "labels", superpixel_area=32.0), progress=False)
    run_job(
        Job(
            factory="dense_ssl.positives.auxiliary_labels:superpixel_map",
            arguments={"superpixel_area": 32.0},
            images=images,
            out=str(folder / "superpixels"),
        ),
        progress=False,
    )
    return folder


def configuration(folder) -> dict:
    data = {
        "name": "folder",
        "root": str(folder / "images"),
        "options": {"auxiliary": str(folder / "labels"), "regions": str(folder / "superpixels")},
    }
    return {
        "data": data,
        "method": "auxcontrast",
        "method_options": OPTIONS,
        "encoder": "resnet18",
        "output_stride": 16,
        "crop": (48, 64),
        "scale": (0.3, 1.0),
        "batch_size": 4,
        "steps": 5,
        "warmup": 1,
        "warmup_lr": 0.01,
        "schedule": "step",
        "milestones": (3,),
        "lr": 0.05,
    }


def test_killed_run_ends_with_the_same_bits_and_fine_tunes(tmp_path, labelled):
    "Bank, momentum branch and image numbers resume with the encoder; the decoder that is left starts a DeepLabV3."
    config, whole, cut = configuration(labelled), tmp_path / "whole", tmp_path / "cut"
    run_here(whole, config, QUICK)
    kill_at(cut, config, QUICK | {"workers": 1}, 2)
    run_here(cut, config, QUICK | {"workers": 1})
    assert same_bits(whole, cut, "method.safetensors")
    assert losses(cut) == losses(whole) and len(losses(whole)) == 5
    protocol = Protocol(
        frozen=False, size=(48, 64), decoder_channels=16, atrous_rates=(1, 2, 3), epochs=1, batch_size=4, loss_stride=4
    )
    train, test = (open_data("room", split, count=8, size=(48, 64)) for split in ("train", "test"))
    decoder = load_method(whole).decoder.state_dict()
    found = train_segmentation(
        load_encoder(whole, 16), train, test, protocol, tmp_path / "fine", pictures=0, progress=False, decoder=decoder
    )
    assert 0 <= found["miou"] <= 1 and found["epochs"] == 1


def test_labels_are_asked_for_and_have_the_size_of_their_image(tmp_path, labelled):
    "A data set without auxiliary labels, and a label map of another size: one sentence."
    config = configuration(labelled)
    bare = config | {"data": {"name": "folder", "root": config["data"]["root"]}}
    with pytest.raises(ValueError, match="method auxcontrast needs auxiliary, which dataset folder does not give"):
        run_here(tmp_path / "bare", bare, QUICK)
    other = tmp_path / "labels"
    other.mkdir()
    for i in range(8):
        Image.new("L", (32, 24)).save(other / f"{i}.png")
    options = config["data"]["options"] | {"auxiliary": str(other)}
    with pytest.raises(
        ValueError, match=r"0\.png: is 32 x 24 pixels and its image is 64 x 48; needs the same width and height"
    ):
        run_here(tmp_path / "other", config | {"data": config["data"] | {"options": options}, "strict": True}, QUICK)

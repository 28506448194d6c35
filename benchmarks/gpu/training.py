"""Evidence: PixContrast and PixDepth at the same T and unit, ten times as long as a CPU can pay; encoders, numbers and
pictures come back."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from dense_ssl.core import read_json, write_json
from dense_ssl.data.catalog import open_data
from dense_ssl.evaluation.coherence import object_coherence
from dense_ssl.evaluation.probe import linear_probe
from dense_ssl.models.encoders import build_encoder, load_encoder
from dense_ssl.training.configuration import Launch, Pretrain, parse
from dense_ssl.training.launch import run_pretrain
from dense_ssl.viz.pca import pca_maps

ROWS = {  # the issue that a comparison can tell: same T, same unit, with depth and without; PixPro's own T beside them
    "random": None,
    "image-max3": {"method": "pixcontrast", "method_options": {"distance_thresholds": (0.3,), "unit": "max"}},
    "depth-max3": {
        "method": "pixdepth",
        "method_options": {"distance_thresholds": (0.3,), "depth_thresholds": (0.1,), "unit": "max"},
    },
    "image-bin7": {"method": "pixcontrast", "method_options": {"distance_thresholds": (0.7,)}},
}


def train(row: str) -> Callable:
    def run(device: str, tiny: bool, options: object) -> dict:
        size, count, steps = ((48, 64), 8, 2) if tiny else ((240, 320) if options.data else (120, 160), 512, 1000)
        data = (
            {"name": "nyuv2", "root": options.data}
            if options.data
            else {"name": "room", "options": {"count": count, "size": size}}
        )
        torch.manual_seed(0)
        folder = options.out / f"run-{row}"
        if ROWS[row] is None:
            encoder, seconds = build_encoder("resnet18", 8), 0.0
        else:
            widths = {"hidden": 64, "out": 32} if tiny else {"hidden": 1024, "out": 256}
            config = parse(
                Pretrain,
                {
                    "data": data,
                    "encoder": "resnet18",
                    "output_stride": 8,
                    "crop": 48 if tiny else 96,
                    "scale": (0.2, 1.0),
                    "batch_size": 4 if tiny else 64,
                    "steps": steps,
                    "warmup": steps // 10,
                    "lr": 0.1,
                    "views": "device",
                    **ROWS[row],
                    "method_options": {**ROWS[row]["method_options"], **widths},
                },
            )
            run = run_pretrain(
                config,
                Launch(
                    accelerator=device,
                    workers=0 if tiny else 6,
                    tensorboard=False,
                    progress=False,
                    checkpoint_seconds=30,
                ),
                row,
                options.out / "runs",
            )
            folder.mkdir(exist_ok=True)
            for name in ("encoder.safetensors", "encoder.json", "done.json", "metrics.jsonl", "params.json"):
                shutil.copy(run / name, folder / name)
            encoder, seconds = load_encoder(run), read_json(run / "done.json")["seconds"]
        root, extra = data.get("root"), data.get("options", {})
        split = {
            name: open_data(data["name"], name, root, **{**extra, **({"count": 8 if tiny else n} if not root else {})})
            for name, n in (("train", 192), ("test", 96))
        }
        encoder = encoder.to(device).eval()
        probe = linear_probe(encoder, split["train"], split["test"], size, device=device, progress=False)
        coherence = object_coherence(encoder, split["test"], size, device=device, progress=False)
        picture(encoder, [split["test"][i] for i in range(4)], options.out / f"picture-{row}.png", device)
        write_json(folder.with_suffix(".json"), {"probe": probe, "coherence": coherence})
        return {
            "training_seconds": seconds,
            "miou": probe["miou"],
            "pixel_accuracy": probe["pixel_accuracy"],
            "coherence_auc": coherence["object"]["auc"],
            "data": data,
            "says": f"mIoU {100 * probe['miou']:.1f}, AUC {100 * coherence['object']['auc']:.1f}, {seconds:.0f} s",
        }

    return run


def picture(encoder: torch.nn.Module, samples: list, path: Path, device: str) -> None:
    "Images above the principal components of their features."
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from dense_ssl.data.views import normalize_image

    with torch.no_grad():
        features = [encoder(normalize_image(s.image)[None].to(device))[0].float().cpu() for s in samples]
    figure, axes = plt.subplots(2, len(samples), figsize=(2.2 * len(samples), 3.6))
    for column, (sample, colours) in enumerate(zip(samples, pca_maps(features), strict=True)):
        for axis, image in zip(axes[:, column], (sample.image.permute(1, 2, 0), colours), strict=True):
            axis.imshow(image), axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


STAGES = {f"train-{row}": (train(row), 240) for row in ROWS}

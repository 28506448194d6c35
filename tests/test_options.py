"""What is written for options: every notebook's parameters as they are planned, and values that cannot be meant."""

import inspect
import json
import os
import random
import shutil
from collections import Counter
from functools import partial, wraps
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dense_ssl.options import check_parameters

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs/10_experiments").glob("*.ipynb"))


def parameters(notebook: Path) -> dict:
    "The namespace of a notebook after its parameters' cell; empty for one that has none."
    cells = json.loads(notebook.read_text())["cells"]
    tagged = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    namespace: dict = {}
    for source in tagged:
        exec(source, namespace)
    return namespace


@pytest.mark.parametrize("notebook", [n for n in NOTEBOOKS if parameters(n)], ids=lambda n: n.name)
def test_parameters_are_checked_before_anything_else(notebook):
    "The cell after the parameters is the check; the defaults pass it and a typing error does not."
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    at = next(i for i, c in enumerate(cells) if "parameters" in c["metadata"].get("tags", []))
    assert "check_parameters(globals())" in "".join(cells[at + 1]["source"])
    given = parameters(notebook)
    check_parameters(given)
    for name in given["__annotations__"]:
        with pytest.raises(ValueError, match=f"^the notebook has no option '{name}x'; did you mean '[^\n]*$"):
            check_parameters(given | {f"{name}x": 1})


@pytest.mark.parametrize("profile", ["smoke", "quick", "small"])
def test_what_is_planned_is_what_notebooks_take(profile, tmp_path):
    "Every stage of a plan gives its notebook parameters that it has, of the kind that it wants."
    from dense_ssl.experiments.plan import as_json, plan

    stages = {e["folder"]: e for e in as_json(plan(profile, runs=tmp_path), profile) if e["folder"]}
    assert stages
    for stage in stages.values():
        check_parameters(parameters(ROOT / "nbs/10_experiments" / stage["notebook"]) | stage["parameters"])


VALUES = [0, -1, 1, 3, 1.5, -0.5, "1e-3", "1/256", "1/0", "fast", "", None, True, False, [], [240, 320], [1, "x"]]
VALUES += [[[1]], {}, {"a": 1}, float("nan"), float("inf"), -float("inf"), 10**30, "1e400", "1e-400", "ü", [True]]
PRETRAIN = {"data": {"name": "room"}, "method": "pixpro", "steps": 10}


def takers() -> dict:
    "What takes options: name, its options with a default or an example, and a function of some of them."
    from dense_ssl.data.catalog import DATASETS, _import, check_data
    from dense_ssl.evaluation.decoders import Protocol
    from dense_ssl.evaluation.detection import DetectionProtocol
    from dense_ssl.geometry.regions import RegionConfig
    from dense_ssl.methods.catalog import METHODS, method_options
    from dense_ssl.options import options_of, parse
    from dense_ssl.positives.copy_paste import CopyPaste
    from dense_ssl.training.configuration import Launch, Pretrain

    found = {f"method {name}": (list(method_options(name, {})), partial(method_options, name)) for name in METHODS}
    for name in DATASETS:
        make = _import(*DATASETS[name])
        root = "/nowhere" if "root" in inspect.signature(make).parameters else None
        known = [*options_of(make, "root", "split").model_fields, "proposals", "pieces", "first"]
        known += ["shuffled", "true_labels"]
        found[f"dataset {name}"] = (known, lambda given, name=name, root=root: check_data(name, root, **given))
    models = {"configuration": (Pretrain, PRETRAIN), "launch": (Launch, {}), "regions": (RegionConfig, {})}
    models |= {"copy_paste": (CopyPaste, {}), "protocol": (Protocol, {}), "detection": (DetectionProtocol, {})}
    for what, (model, good) in models.items():
        found[what] = (list(model.model_fields), lambda v, m=model, g=good, w=what: parse(m, g | v, w))
    return found


def test_every_option_is_taken_or_refused_in_one_sentence(capsys):
    "Each option of everything that takes options, with each of many values; and a typing error in its name."
    counts = Counter()
    for what, (known, take) in takers().items():
        for key in known:
            for value in VALUES:
                try:
                    take({key: value})
                    counts["taken"] += 1
                except ValueError as error:
                    said = str(error)
                    counts["refused"] += 1
                    assert "\n" not in said and len(said) < 700 and "Input" not in said, (what, key, value, said)
                    assert any(name in said for name in known), (what, key, value, said)
            with pytest.raises(ValueError, match=f"^[^\n]*'{key}_x'[^\n]*$"):
                take({f"{key}_x": 1})
                raise AssertionError(f"{what} takes {key}_x")
            counts["unknown"] += 1
    with capsys.disabled():
        print(dict(counts), end=" ")
    assert min(counts.values()) > 100 and sum(counts.values()) > 1000


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("batch_size: 1e2", 100),
        ("lr: 1/256", 1 / 256),
        ("scale: ['0.2', 1e-0]", (0.2, 1.0)),
        ("crop: [64, '128']", (64, 128)),
    ],
)
def test_numbers_as_yaml_gives_them(text, meant):
    from dense_ssl.training.configuration import Pretrain, parse

    ((key, value),) = yaml.safe_load(text).items()
    assert repr(getattr(parse(Pretrain, PRETRAIN | {key: value}), key)) == repr(meant)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"shuffled": "no"}, {}),
        ({"shuffled": "yes"}, {"shuffled": True}),
        ({"true_labels": "1/2"}, {"true_labels": 0.5}),
        ({"first": "1e1"}, {"first": 10, "count": 10}),
    ],
)
def test_what_was_meant_is_what_is_opened(given, meant):
    "The options that all data sets share are taken as they were checked, not as they were written."
    from dense_ssl.data.catalog import check_data, open_data

    assert check_data("room", size=(48, 64), **given) == {"size": (48, 64), **meant}
    opened = open_data("room", size=(48, 64), **({"count": 10} if "first" not in given else {}), **given)
    assert len(opened) == 10 and ("other images" in opened.name) == ("shuffled" in meant)
    assert (opened[0].auxiliary is not None) == ("true_labels" in meant)


@pytest.mark.parametrize("seed", range(int(os.environ.get("MALFORMED", "60")) // 10))
def test_what_is_taken_can_be_built_or_is_refused_in_one_sentence(seed):
    "A method with one option of a random value, built without memory."
    from dense_ssl.methods.catalog import METHODS, build_method, method_options
    from dense_ssl.models.encoders import build_encoder

    draw = random.Random(seed)
    name = draw.choice(list(METHODS))
    options = {draw.choice(list(method_options(name, {}))): draw.choice(VALUES)}
    try:
        with torch.device("meta"):
            encoder = build_encoder("resnet18", 16 if name == "auxcontrast" else None)
            assert build_method(name, encoder, **options) is not None
    except ValueError as error:
        assert "\n" not in str(error), (name, options, error)


LATE = {  # options of a last stage or protocol that cannot be meant, and what the sentence names
    "06_monodepth": [({"processes": 0}, "processes"), ({"device": "abacus"}, "device"), ({"frames": "/none"}, "/none"),
                     ({"launch": {"threds": 1}}, "threds")],
    "08_prepare_auxiliary": [({"dropped": "all"}, "dropped"), ({"superpixel_area": -1}, "superpixel_area"),
                             ({"processes": 0}, "processes"), ({"truth": {"name": "rom"}}, "rom"),
                             ({"device": "abacus"}, "device")],
    "10_cpcdr_video": [({"processes": 0}, "processes"), ({"regions": {"cuont": 1}}, "cuont"),
                       ({"pretrain": {"stepz": 3}}, "stepz"), ({"pretrain": {"method_options": {"K": 3}}}, "K"),
                       ({"size": [64, 65]}, "size"), ({"size": [0, 0]}, "size"), ({"classes": 0}, "classes"),
                       ({"label_ids": "city"}, "city"), ({"device": "abacus"}, "device")],
    "03_evaluate": [({"segmentation": {"epochz": 1}}, "epochz"), ({"finetune": {"lr": "fast"}}, "lr"),
                    ({"protocols": ["coherence", "knn"], "options": {"knn": {"kk": 1}}}, "kk"),
                    ({"protocols": ["coherence", "detection"], "detection": {"stepz": 1}}, "stepz"),
                    ({"protocols": ["coherence", "cluster"]}, "cluster"), ({"size": [48]}, "size"),
                    ({"clustering": {"k": 1}, "protocols": ["coherence", "clustering"]}, "k")],
}


class Started(BaseException):
    """A stage began."""


@pytest.mark.parametrize("name", LATE)
def test_the_last_stage_is_checked_before_the_first_one_starts(name, tmp_path, monkeypatch):
    "The cells of a notebook of several stages up to the first one, with a wrong option of a later one."
    from dense_ssl.data import prepare
    from dense_ssl.evaluation import coherence
    from dense_ssl.positives import auxiliary_labels
    from dense_ssl.training import launch

    def begins(module, stage):
        def started(*_, **__):
            raise Started

        monkeypatch.setattr(module, stage, wraps(getattr(module, stage))(started))

    for module, stage in ((prepare, "prepare_tree"), (launch, "run_pretrain"), (auxiliary_labels, "fit_labels"),
                          (coherence, "object_coherence")):
        begins(module, stage)
    for t in range(3):
        Image.fromarray(np.full((64, 128, 3), t, np.uint8)).save(tmp_path / f"{t}.png")
    own = {"03_evaluate": {"out": str(tmp_path / "out")}, "08_prepare_auxiliary": {}}.get(
        name, {"images": str(tmp_path), "intrinsics": [1.0, 1.0, 0.5, 0.5], "runs": str(tmp_path / "runs")})
    notebook = ROOT / f"nbs/10_experiments/{name}.ipynb"
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]

    def start(given):
        namespace = {"__name__": "notebook"}
        for cell in cells:
            exec("".join(cell["source"]), namespace)
            if "parameters" in cell["metadata"].get("tags", []):
                namespace.update(given)

    with pytest.raises(Started):
        start(own)
    for given, word in LATE[name]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        try:
            start(own | given)
        except (ValueError, Started) as error:
            said = str(error) or "a stage began"
            assert word in said and "\n" not in said, (given, said)
        else:
            raise AssertionError(f"{given} is taken")

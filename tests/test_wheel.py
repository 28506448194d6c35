"""The package by itself: what its wheel holds and asks for, what importing a part of it loads, and a pre-training from
the wheel in an environment that sees nothing but what the wheel asks for."""

import ast
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable
from email.parser import Parser
from importlib.metadata import Distribution, distributions, packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = {"notebooks", "experiments", "monocular", "regions", "clustering", "detection", "surfaces", "stereo", "site",
          "dev"}
NOT_NEEDED = {
    "jupyterlab",
    "notebook",
    "jupyter-server",
    "ipykernel",
    "ipywidgets",
    "ipython",
    "nbdev",
    "nbclient",
    "nbconvert",
    "papermill",
    "snakemake",
    "tensorboard",
    "tornado",
    "pytest",
    "hypothesis",
    "ruff",
    "transformers",
    "infomap",
    "faiss-cpu",
    "opencv-python-headless",
    "trimesh",
}
EXPLORERS = {  # of dense_ssl.viz, and the package of the extra `notebooks` that each asks for first
    **dict.fromkeys(("explorer", "explorers.widgets"), "anywidget"),
    **dict.fromkeys((f"explorers.{name}" for name in ("regions", "scenes", "labels", "runs")), "ipywidgets"),
}

LIGHT = """
import importlib, pkgutil, sys
import torch, numpy
before = {name.split(".")[0] for name in sys.modules}
import dense_ssl.objectives, dense_ssl.positives.masks
parts = [f"dense_ssl.objectives.{m.name}" for m in pkgutil.iter_modules(dense_ssl.objectives.__path__)]
for name in parts:
    importlib.import_module(name)
added = {name.split(".")[0] for name in sys.modules} - before - sys.stdlib_module_names
print(len(parts), *sorted(added))
"""

BARE = """
import importlib, json, pkgutil, sys
from importlib.metadata import distributions
from pathlib import Path
import dense_ssl
missing = {}
for module in pkgutil.walk_packages(dense_ssl.__path__, "dense_ssl."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        missing[module.name] = error.name
said = {"file": dense_ssl.__file__, "missing": missing, "there": [d.metadata["Name"] for d in distributions()],
        "imported": len([name for name in sys.modules if name.split(".")[0] == "dense_ssl"])}

from dense_ssl.core import read_json
from dense_ssl.experiments.rows import read_yaml
from dense_ssl.models.encoders import read_weights
from dense_ssl.training.configuration import Launch, Pretrain, parse
from dense_ssl.training.launch import run_pretrain
from dense_ssl.training.loop import Log
config = {"data": {"name": "room", "options": {"count": 4, "size": [48, 64]}}, "method": "pixdepth", "encoder":
"timm/test_resnet",
          "crop": 48, "method_options": {"hidden": 32, "out": 30}, "batch_size": 2, "steps": 2, "warmup": 1, "lr": 0.05}
folder = run_pretrain(parse(Pretrain, config), Launch(accelerator="cpu", log_every=1, tensorboard=False, threads=1))
said |= {"folder": str(folder), "done": (folder / "done.json").is_file(), "weights": len(read_weights(folder /
"encoder.safetensors")),
         "losses": [line["loss"] for line in Log.read(folder / "metrics.jsonl")], "commit": read_json(folder /
         "env.json")["commit"]}
for name, ask in (("tensorboard", lambda: Log(Path("log"), 0)), ("experiments", lambda: read_yaml("profiles.yaml"))):
    try:
        said[name] = str(ask())
    except ValueError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def run(*command: str | Path, **options) -> str:
    "What a command prints; its errors where it fails."
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def closure(wanted: Iterable[str], extra: str = "") -> dict[str, Distribution]:
    "The distributions of this environment that `wanted` (lines of Requires-Dist) ask for, directly or not."
    there = {canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    found, seen, queue = {}, set(), [(Requirement(line), extra) for line in wanted]
    while queue:
        requirement, extra = queue.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        assert name in there, f"{requirement} is asked for and not installed here"
        assert requirement.specifier.contains(there[name].version, prereleases=True), (
            f"{name} {there[name].version} is not {requirement}"
        )
        found[name] = there[name]
        new = {(name, e) for e in ("", *requirement.extras)} - seen
        seen |= new
        queue += [(Requirement(line), e) for _, e in new for line in there[name].requires or ()]
    return found


def link(kept: dict[str, Distribution], site: Path) -> None:
    "Links in `site` to the files of `kept` and to no other distribution's: to whole folders where they have no others."

    def files(d: Distribution) -> list[Path]:
        return [Path(f) for f in d.files or () if ".." not in f.parts and not f.is_absolute()]

    foreign = {
        p
        for d in distributions()
        if canonicalize_name(d.metadata["Name"]) not in kept
        for f in files(d)
        for p in f.parents
    }
    done = set()
    for d in kept.values():
        for file in files(d):
            path = next((p for p in [*reversed(file.parents), file] if p not in foreign), file)
            if path not in done:
                done.add(path)
                (site / path).parent.mkdir(parents=True, exist_ok=True)
                (site / path).symlink_to(Path(str(d.locate_file(path))).resolve())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "The wheel of the tree, built in a copy, so that nothing of an earlier build gets in."
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "settings.ini", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "dense_ssl", tree / "dense_ssl", ignore=shutil.ignore_patterns("__pycache__"))
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--use-pep517",
        "-w",
        out,
        tree,
    )
    return next(out.glob("dense_ssl-*.whl"))


def requires(wheel: Path) -> tuple[list[str], set[str]]:
    "What a wheel's METADATA says: Requires-Dist, Provides-Extra."
    with ZipFile(wheel) as archive:
        text = next(archive.read(n) for n in archive.namelist() if n.endswith(".dist-info/METADATA")).decode()
    metadata = Parser().parsestr(text)
    return metadata.get_all("Requires-Dist"), set(metadata.get_all("Provides-Extra"))


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """The folder of a fresh virtual environment: the wheel, what it asks for without extras, and nothing else, not
    even pip."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    link(closure(requires(wheel)[0]), next(folder.glob("lib/python*/site-packages")))
    run(
        sys.executable,
        "-m",
        "pip",
        "-q",
        "--python",
        folder / "bin" / "python",
        "install",
        "--no-deps",
        "--no-index",
        wheel,
    )
    return folder


@pytest.fixture(scope="module")
def said(bare, tmp_path_factory) -> dict:
    """What BARE says in the bare environment: it imports everything, then pre-trains, in a folder of its own, with no
    other program on the path."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DENSE_SSL", "VIRTUAL_ENV"))} | {
        "PATH": str(bare / "bin")
    }
    folder = tmp_path_factory.mktemp("user").resolve()
    words = run(bare / "bin" / "python", "-c", BARE, cwd=folder, env={**env, "OMP_NUM_THREADS": "1"}).splitlines()
    return {"cwd": folder, **json.loads(words[-1])}


def test_objectives_and_masks_load_torch_and_numpy_only():
    parts, *added = run(sys.executable, "-c", LIGHT, env={**os.environ, "PYTHONPATH": str(ROOT)}).split()
    assert int(parts) == len([*(ROOT / "dense_ssl" / "objectives").glob("[!_]*.py")]) and added == ["dense_ssl"]


def test_wheel_holds_every_file_of_the_package(wheel):
    with ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    files = [f for f in (ROOT / "dense_ssl").rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert held == {f.relative_to(ROOT).as_posix(): f.read_bytes() for f in files}


def test_wheel_asks_for_no_notebook_server_or_workflow_package(wheel):
    lines, extras = requires(wheel)
    asked = {
        extra: {canonicalize_name(Requirement(line).name) for line in lines if f'extra == "{extra}"' in line}
        for extra in EXTRAS
    }
    assert (
        extras == EXTRAS and asked["notebooks"] >= {"jupyterlab", "ipywidgets"} and "papermill" in asked["experiments"]
    )
    assert all(asked[extra] <= asked["dev"] for extra in EXTRAS)
    assert not closure(lines).keys() & NOT_NEEDED


def test_what_is_imported_is_declared(wheel):
    owners = packages_distributions()
    declared = {canonicalize_name(Requirement(line).name) for line in requires(wheel)[0]}
    for file in (ROOT / "dense_ssl").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
        for name in {n.split(".")[0] for n in names} - sys.stdlib_module_names - {"dense_ssl"}:
            assert {canonicalize_name(owner) for owner in owners.get(name, ())} & declared, (
                f"{file} imports {name}, which no requirement names"
            )


def test_bare_environment_imports_all_but_the_explorers(wheel, bare, said):
    assert Path(said["file"]).is_relative_to(bare)
    assert {canonicalize_name(name) for name in said["there"]} == {*closure(requires(wheel)[0]), "dense-ssl"}
    assert said["missing"] == {f"dense_ssl.viz.{name}": package for name, package in EXPLORERS.items()}
    assert said["imported"] == len([*(ROOT / "dense_ssl").rglob("*.py")]) - len(EXPLORERS)


def test_bare_environment_pretrains(said):
    assert Path(said["folder"]).parent == said["cwd"] / "runs" / "pretrain" and said["done"] and said["weights"]
    assert len(said["losses"]) == 2 and all(loss > 0 for loss in said["losses"])
    assert said["commit"] == ""  # there is no git on the path


def test_bare_environment_says_what_is_missing(said):
    assert "dense_ssl[experiments]" in said["tensorboard"] and "from a clone of the project" in said["experiments"]

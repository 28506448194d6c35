"""Another machine, for every process that has this folder on its PYTHONPATH (`tests/arithmetic.py`).

DENSE_SSL_ULP = n: what goes into the computations is moved by -1, 0 or 1 units in the last place, drawn by n and
the place in the array: normalised images, normalised depth, points of depth maps, the vertices that
surfaces are cut at, the first values of parameters. DENSE_SSL_SEEDS = n: every seed of torch and of views is
another one.
"""

import importlib.machinery
import os
import sys
from functools import wraps

ULP, SEEDS = int(os.environ.get("DENSE_SSL_ULP", 0)), int(os.environ.get("DENSE_SSL_SEEDS", 0))


def shifted(values, trailing: int = 0):
    "A tensor or array moved by at most one unit in the last place; alike where `trailing` dimensions (0: all) are."
    import torch

    x = torch.as_tensor(values)
    shape = x.shape[-trailing:] if trailing else x.shape
    generator = torch.Generator().manual_seed(ULP * 1000003 + sum((k + 1) * n for k, n in enumerate(shape)))
    step = torch.randint(-1, 2, shape, generator=generator).to(x.device)
    moved = torch.where(step == 0, x, torch.nextafter(x, (step * torch.inf).nan_to_num(0.0).to(x.dtype)))
    return moved if torch.is_tensor(values) else moved.numpy()


def parameters(init) -> None:
    "What torch.nn.init fills in."
    import torch

    def wrap(fill):
        @wraps(fill)
        def filled(tensor, *args, **kwargs):
            out = fill(tensor, *args, **kwargs)
            with torch.no_grad():
                tensor.copy_(shifted(tensor))
            return out

        return filled

    for name in (
        "_no_grad_uniform_",
        "_no_grad_normal_",
        "_no_grad_trunc_normal_",
        "kaiming_uniform_",
        "kaiming_normal_",
    ):
        setattr(init, name, wrap(getattr(init, name)))


def result(name: str, trailing: int):
    "What function `name` of a module returns."

    def change(module) -> None:
        function = getattr(module, name)
        setattr(module, name, wraps(function)(lambda *args, **kwargs: shifted(function(*args, **kwargs), trailing)))

    return change


def first_argument(name: str):
    def change(module) -> None:
        function = getattr(module, name)
        setattr(
            module, name, wraps(function)(lambda values, *args, **kwargs: function(shifted(values), *args, **kwargs))
        )

    return change


def seed(name: str):
    "Function `name` of a module starts from another seed."

    def change(module) -> None:
        function = getattr(module, name)
        setattr(module, name, wraps(function)(lambda first, *rest: function(first + 1000 * SEEDS, *rest)))

    return change


CHANGES: dict[str, list] = {}
if ULP:
    CHANGES |= {
        "torch.nn.init": [parameters],
        "dense_ssl.data.views": [result("normalize_image", 2)],
        "dense_ssl.geometry.depth": [result("normalize_depth", 2)],
        "dense_ssl.geometry.camera": [result("backproject", 3)],
        "dense_ssl.geometry.segments": [first_argument("segment_mesh")],
    }
if SEEDS:
    CHANGES |= {"torch.random": [seed("manual_seed")]}
    CHANGES["dense_ssl.data.views"] = [*CHANGES.get("dense_ssl.data.views", []), seed("sample_generator")]


class Changed:
    "Finds the modules of CHANGES and changes them once they are loaded."

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            for change in CHANGES[name]:
                change(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Changed)

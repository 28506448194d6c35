"""Notebooks under nbs/, all or those named, each in a process of its own, two at a time; what failed is listed last.

python tests/notebooks.py [nbs/01_geometry/04_regions.ipynb ...]

Importing torch and what else nearly every notebook needs takes longer than most of them do. So one process imports it,
and the processes of the notebooks are forked from that one. Nothing of dense_ssl is imported before the fork.
"""

import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cells import run_apart

PYTHON, ROOT = Path(sys.executable), Path(__file__).parents[1]
SLOWEST = (
    "tests/test_graph.py",
    "tests/test_slurm.py",  # mostly waits
    "tests/test_gpu_rehearsal.py",
    "tests/test_training.py",
    "tests/test_explorer.py",
    "nbs/10_experiments/13_reproduce.ipynb",
    "tests/test_geosets.py",
    "tests/test_cpcdr.py",
    "nbs/06_methods/03_auxcontrast.ipynb",
    "nbs/07_training/01_loop.ipynb",
    "tests/test_data.py",
    "tests/test_evaluation.py",
)  # these are started first, so that nothing long is left over at the end
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch", "torchvision.transforms.v2.functional", "lightning_fabric", "segmentation_models_pytorch", "numba"]
    + ["scipy.ndimage", "scipy.stats", "sklearn.metrics", "matplotlib.pyplot", "matplotlib_inline.backend_inline"]
    + ["hypothesis", "pytest", "pydantic", "ipywidgets", "execnb.shell", "nbdev.process"]
)


class Outcome(NamedTuple):
    """What was run, its seconds, how much passed, and what failed: where, why, and the command that runs it alone."""

    name: str
    seconds: float
    passed: int
    failed: list[tuple[str, str]]


def environment(runs: str) -> dict[str, str]:
    "One thread for each process, no window, and runs where nothing else lies."
    return {
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "DENSE_SSL_RUNS": runs,
        **os.environ,
    }


def notebooks() -> list[Path]:
    return sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def notebook(path: Path, env: dict[str, str]) -> Outcome:
    "One notebook, by `tests/cells.py`."
    name, began, failed = str(path.relative_to(ROOT)), time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        files, (asked, held) = (Path(folder, "out"), Path(folder, "err")), FORKS.Pipe(duplex=False)
        run = FORKS.Process(target=run_apart, args=(path, *files, env, asked))
        run.start(), asked.close(), run.join(), held.close()
        out, err = (file.read_text() if file.exists() else "" for file in files)
    if run.exitcode:
        last = (err.strip() or out.strip()).split("\n")[-1]
        where = last if last.startswith(name) else f"{name}: ended with {run.exitcode}: {last}"
        failed = [(where, f"{os.path.relpath(PYTHON, ROOT)} tests/notebooks.py {name}")]
        print(f"-- {name}\n{out[-4000:]}{err[-2000:]}", flush=True)
    return Outcome(name, time.monotonic() - began, not failed, failed)


def side_by_side(
    paths: list[Path], env: dict[str, str], others: dict[str, Callable[[Path], Outcome]] | None = None, lanes: int = 2
) -> list[Outcome]:
    "Run notebooks, and with `others` what has another suffix, `lanes` at a time; a failure stops nothing."
    os.environ.update(env)  # the process that notebooks are forked from must have it before it imports torch
    names = {path: str(path.relative_to(ROOT)) for path in paths}
    order = sorted(paths, key=lambda p: SLOWEST.index(names[p]) if names[p] in SLOWEST else len(SLOWEST))
    ended = itertools.count(1)

    def one(path: Path) -> Outcome:
        outcome = (others or {}).get(path.suffix, lambda p: notebook(p, env))(path)
        how = "FAILED" if outcome.failed else "ok"
        print(f"{next(ended):4d} of {len(order)}  {how:6s} {outcome.seconds:4.0f} s  {outcome.name}", flush=True)
        return outcome

    with ThreadPoolExecutor(max(1, min(lanes, os.cpu_count() or 1))) as pool:
        return list(pool.map(one, order))


def report(outcomes: list[Outcome], began: float) -> int:
    "Print what took longest, the list of what failed and the closing line; the exit code."
    print(*(f"{o.seconds:5.0f} s  {o.name}" for o in sorted(outcomes, key=lambda o: -o.seconds)[:12]), sep="\n")
    failed = [f for o in outcomes for f in o.failed]
    for k, (where, again) in enumerate(failed, 1):
        print(f"{k:3d}  {where}\n     {again}")
    print(f"{sum(o.passed for o in outcomes)} passed, {len(failed)} failed in {time.monotonic() - began:.0f} s")
    return int(bool(failed))


if __name__ == "__main__":
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as runs:
        named = [Path(p).resolve() for p in sys.argv[1:]]
        outcomes = side_by_side(named or notebooks(), environment(runs))
    sys.exit(report(outcomes, began))

"""Do the notebooks and tests that compute hold on another machine?

    python tests/arithmetic.py                    what is missing in tests/arithmetic.json, or of other code: there the
    result goes
    python tests/arithmetic.py --all              all of it again
    python tests/arithmetic.py --handful          what CI runs: a few, plain and with shifted inputs; nothing is written
    python tests/arithmetic.py --only 04_regions --under plain ulp

Run under other arithmetics, with inputs that differ in the last place, and what they train with other seeds. Listed:
FAILED  an assertion that fails in any run, or a run that ended early
THIN    a comparison of numbers that differ between the runs, whose margin (median distance from its bound) is less than
        three times their spread (largest less smallest)

Every assert is seen with its numbers (`tests/asserts.py`), and a failing one does not end a run. The inputs are
shifted by `tests/arithmetic/sitecustomize.py`.
"""

import argparse
import ast
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from asserts import MOST
from notebooks import PYTHON, ROOT, environment
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from dense_ssl.core import code_versions

# All that rounding can touch: groupings, clusters, sorts, argmaxes, thresholds; two processes against one.
COMPUTE = {
    "nbs/01_geometry": "03_superpixels 04_regions 06_segments 07_reprojection",
    "nbs/02_data": "03_sequences 04_surfaces 05_frame_pairs 07_proposals",
    "nbs/03_positives": "03_auxiliary_labels 04_geometric_sets",
    "nbs/04_objectives": "02_prototypes",
    "nbs/08_evaluation": "02_segmentation 03_probe 06_shares",
    "nbs/09_viz": "04_pca 05_tsne 06_clusters",
    "tests": " ".join(
        f"test_{k}.py::test_two_processes_walk_the_losses_of_one" for k in ("cpcdr", "geosets", "monodepth", "training")
    ),
}
# What they train, or fit to random networks, is measured too; with other seeds as well.
TRAIN = {
    "nbs/04_objectives": "04_set_infonce",
    "nbs/05_models": "07_point_unet",
    "nbs/06_methods": "00_pixdepth 01_cpcdr 03_auxcontrast 04_geosets 05_moco 06_densecl 07_swav 08_picie 11_monodepth",
    "nbs/07_training": "01_loop",
    "nbs/08_evaluation": "04_clustering 05_detection",
}
KEPT = ROOT / "tests" / "arithmetic.json"
HANDFUL = ("04_regions", "04_geosets", "01_loop", "00_pixdepth")

found = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
WIDE = [name for name in found if name.startswith(("AVX512", "X86_V4"))]  # wider than AVX2
UNDER: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "plain": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NUMBA_CPU_NAME": "generic",
        "NPY_DISABLE_CPU_FEATURES": " ".join(found),
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NUMBA_CPU_NAME": "haswell",
        "NPY_DISABLE_CPU_FEATURES": " ".join(WIDE),
    },
    "ulp": {"DENSE_SSL_ULP": "1"},
    "seed 1": {"DENSE_SSL_SEEDS": "1"},
    "seed 2": {"DENSE_SSL_SEEDS": "2"},
}


def run(path: str, name: str, folder: Path) -> tuple[str, str, list[dict], str, float]:
    "One notebook or test under one arithmetic: path, name, what its asserts compared, how it ended if not well."
    out, began = folder / f"{name} {path.replace('/', '-').replace(':', '-')}.jsonl", time.monotonic()
    env = (
        environment(str(folder / "runs"))
        | UNDER[name]
        | {
            "DENSE_SSL_ASSERTS": str(out),
            "PYTHONPYCACHEPREFIX": str(folder / "pyc"),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
            "CI": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT / "tests" / "arithmetic"), str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
            ),
        }
    )
    env = {k: v for k, v in env.items() if v}  # nothing to disable is said by leaving the variable out
    command = ["tests/cells.py", path] if path.endswith(".ipynb") else ["-m", "pytest", "-q", "-p", "seen", path]
    done = subprocess.run([PYTHON, *command], cwd=ROOT, env=env, capture_output=True, text=True)
    words = (done.stderr.strip() or done.stdout.strip()).split("\n")[-1] if done.returncode else ""
    lines = [json.loads(x) for x in out.read_text().splitlines()] if out.exists() else []
    seconds = time.monotonic() - began
    print(f"{seconds:5.0f} s  {name:9s}  {path}  {words}", flush=True)
    return path, name, lines, words, seconds


def distances(lines: list[dict]) -> dict[tuple[str, str], list[float]]:
    "For each comparison how far its left side lay from its right one, every time."
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in lines:
        if "sign" in line:
            seen[line["where"], line["source"]].append(line["left"] - line["right"])
    return seen


def spreads(by_name: dict[str, list[dict]]) -> list[dict]:
    "Margin and spread of each comparison whose numbers differ between the runs; in a loop, where their ratio is least."
    runs, rows = [distances(lines) for lines in by_name.values()], []
    for key in sorted(set.intersection(*(set(r) for r in runs))):
        many = [r[key] for r in runs]
        if len({len(m) for m in many}) > 1 or len(many[0]) >= MOST:  # not a measurement
            continue
        worst = None
        for values in zip(*many, strict=True):
            spread, middle = max(values) - min(values), statistics.median(values)
            margin = abs(middle) if len({v > 0 for v in values}) == 1 else 0.0
            if spread > 0 and (worst is None or margin / spread < worst["margin"] / worst["spread"]):
                worst = {"where": key[0], "compares": key[1], "margin": margin, "spread": spread}
        if worst:
            worst["ratio"] = worst["margin"] / worst["spread"]
            rows.append({k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in worst.items()})
    return rows


def report(results: list[tuple[str, str, list[dict], str, float]]) -> dict:
    "All that is kept of one notebook or test: what failed and the spreads."
    failures: dict[str, list[str]] = defaultdict(list)
    for path, name, lines, words, _ in results:
        for line in lines:
            if "failed" in line:
                failures[f"{line['where']} {line['source']}"].append(f"{name}: {line['failed']}")
        if words:
            failures[path].append(f"{name}: {words}")
    rows = spreads({name: lines for _, name, lines, *_ in results})
    return {
        "machine": machine(),
        "under": [name for _, name, *_ in results],
        "seconds": round(sum(seconds for *_, seconds in results)),
        "failures": dict(failures),
        "thin": [row for row in rows if row["ratio"] < 3],
        "numbers": [row for row in rows if row["ratio"] >= 3],
    }


def machine() -> str:
    "The processor's name."
    words = Path("/proc/cpuinfo").read_text().split("\n") if Path("/proc/cpuinfo").exists() else []
    return next((w.partition(":")[2].strip() for w in words if w.startswith("model name")), platform.processor())


def digest(path: str) -> str:
    """Twelve digits of the code of a notebook or test and of all that it imports from the package; comments and
    formatting do not count."""
    text = (ROOT / path.partition("::")[0]).read_text()
    if path.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    named = re.findall(r"dense_ssl(?:\.\w+)+", text) + [
        f"dense_ssl.{m}" for m in re.findall(r"default_exp (\S+)", text)
    ]
    used = code_versions(*(name for name in sorted(set(named)) if (ROOT / f"{name.replace('.', '/')}.py").is_file()))
    return hashlib.sha256(f"{ast.dump(ast.parse(text))}{json.dumps(used)}".encode()).hexdigest()[:12]


def said(results: dict[str, dict], every: bool) -> int:
    "Print what failed and what is thin, with `every` also what has room; how many are bad."
    for entry in results.values():
        for where, names in entry["failures"].items():
            print(f"FAILED {where}", *names, sep="\n       ")
    for kind, word in (("thin", "THIN  "), *([("numbers", "room  ")] if every else [])):
        for row in (row for entry in results.values() for row in entry[kind]):
            print(f"{word} {row['where']} {row['compares']}: margin {row['margin']}, spread {row['spread']}")
    counts = {kind: sum(len(e[kind]) for e in results.values()) for kind in ("failures", "thin", "numbers")}
    print("{failures} failures, {thin} thin margins, {numbers} numbers with room".format(**counts))
    return counts["failures"] + counts["thin"]


def listed(folders: dict[str, str]) -> list[str]:
    return [
        f"{folder}/{name}{'.ipynb' * folder.startswith('nbs')}"
        for folder, names in folders.items()
        for name in names.split()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--handful", action="store_true", help="what CI runs")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="WORD", help="of the listed ones those with a word in their path"
    )
    parser.add_argument("--under", nargs="*", choices=UNDER, help="which arithmetics; default: all")
    parser.add_argument("--all", action="store_true", help="also what was found with the same code before")
    parser.add_argument("--lanes", type=int, default=2)
    a = parser.parse_args()
    only, under = (list(HANDFUL), ["plain", "ulp"]) if a.handful else (a.only, a.under or list(UNDER))
    began, trained, keeps = time.monotonic(), listed(TRAIN), not (a.handful or a.under)
    paths = [p for p in trained + listed(COMPUTE) if not only or any(word in p for word in only)]
    kept = json.loads(KEPT.read_text()) if keeps and KEPT.exists() else {}
    there = {p: kept[p] for p in paths if p in kept and kept[p]["code"] == digest(p) and not a.all}
    waiting = [p for p in paths if p not in there]
    print(f"{len(paths)} notebooks and tests, {len(there)} of this code there already", flush=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(a.lanes) as pool:
        tasks = {
            path: [
                pool.submit(run, path, u, Path(folder)) for u in under if path in trained or not u.startswith("seed")
            ]
            for path in waiting
        }
        for path, futures in tasks.items():
            there[path] = {"code": digest(path), **report([f.result() for f in futures])}
            if keeps:  # as soon as it is known: a run of an hour may be interrupted
                kept = {k: v for k, v in kept.items() if k in trained + listed(COMPUTE)} | {path: there[path]}
                KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=0) + "\n")
    bad = said(there, bool(a.only))
    print(f"{len(waiting)} of {len(paths)} run under {len(under)} arithmetics in {time.monotonic() - began:.0f} s")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())

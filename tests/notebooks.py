"""Each notebook under nbs/ with nbdev_test, each in a process of its own, two at a time; the slowest are named."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BIN, ROOT = Path(sys.executable).parent, Path(__file__).parents[1]


def test(path: Path) -> tuple[float, Path, str]:
    "Seconds, the notebook, and what it said where it failed."
    began = time.monotonic()
    run = subprocess.run([BIN / "nbdev_test", "--path", path, "--n_workers", "0"], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    return time.monotonic() - began, path.relative_to(ROOT), "" if run.returncode == 0 else run.stdout + run.stderr


notebooks = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
with ThreadPoolExecutor(max(1, min(2, os.cpu_count() or 1))) as pool:
    results = list(pool.map(test, notebooks))
for _, path, said in results:
    if said:
        print(f"-- {path}\n{said[-4000:]}")
failed = [path for _, path, said in results if said]
print(*(f"{seconds:5.0f} s  {path}" for seconds, path, _ in sorted(results, reverse=True)[:8]), sep="\n")
print(f"{len(results) - len(failed)} notebooks passed, {len(failed)} failed")
sys.exit(bool(failed))

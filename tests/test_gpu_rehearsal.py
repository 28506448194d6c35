"""benchmarks/gpu/run.py on a CPU: the same code as on a GPU, whole, and with stages that fail in three ways."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(out: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "benchmarks/gpu/run.py", "--device", "cpu", "--tiny", "--out", out, *words],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def results(out: Path) -> dict:
    found = {f.stem: json.loads(f.read_text()) for f in out.glob("*-*.json")}
    return {name: r for name, r in found.items() if "stage" in r}


def test_rehearsal(tmp_path):
    said = run(tmp_path, "--minutes", "20")
    print(said.stdout)
    assert said.returncode == 0, said.stdout + said.stderr + (tmp_path / "log-0.txt").read_text()[-3000:]
    assert all(r["ok"] for r in results(tmp_path).values()) and "0 failed, 0 not begun" in said.stdout


@pytest.mark.parametrize("fault", ["raise", "kill"])
def test_a_stage_that_fails_leaves_the_others(tmp_path, fault):
    words = [
        "--stages",
        "check-operations",
        "kernel-codes",
        "kernel-sets",
        "--fault",
        json.dumps({"kernel-codes": fault}),
    ]
    said = run(tmp_path, *words)
    found = results(tmp_path)
    assert (
        said.returncode == 1
        and "1 failed" in said.stdout
        and {n: r["ok"] for n, r in found.items()}
        == {"check-operations": True, "kernel-codes": False, "kernel-sets": True}
    )
    assert ("a fault that was asked for" if fault == "raise" else "status -9") in "\n".join(
        found["kernel-codes"]["error"]
    )
    again = run(tmp_path, *words[:4])  # only what failed is run again, and what is there is kept
    assert again.returncode == 0 and "1 stages to run, 2 there already" in again.stdout, again.stdout


def test_out_of_time_is_said(tmp_path):
    names = ["check-operations", "kernel-sets", "kernel-codes"]  # of two workers, the first has the first and the last
    words = ["--stages", *names, "--minutes", "0.1", "--fault", json.dumps({"check-operations": "hang"})]
    said, found = run(tmp_path, *words), results(tmp_path)
    assert said.returncode == 1 and "1 not begun" in said.stdout and "kernel-codes" not in found, said.stdout
    assert "time for all stages is over" in str(found["check-operations"]["error"])

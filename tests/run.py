"""Everything that `make test` checks. All of it is run, whatever fails; the failures are listed at the end, each with
the command that runs it alone. First come the checks in which a mistake is cheapest to find, then notebooks and
test files, two at a time."""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from functools import partial
from pathlib import Path

from notebooks import PYTHON, ROOT, Outcome, environment, notebooks, report, side_by_side

BIN = os.path.relpath(PYTHON.parent, ROOT)
STEPS = {
    "the package is what the notebooks export, and every notebook is clean": [f"{BIN}/python", "tests/sync.py"],
    "README.md is what nbs/index.ipynb shows": [f"{BIN}/python", "tests/readme.py"],
    "layers": [f"{BIN}/lint-imports"],
    "ruff": [f"{BIN}/ruff", "check", "dense_ssl", "tests", "benchmarks"],
}


def step(name: str, env: dict[str, str]) -> Outcome:
    "Run one of STEPS; its last line where it fails."
    command, began = STEPS[name], time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    print(f"== {name}\n{done.stdout}", flush=True)
    failed = [(f"{name}: {done.stdout.strip().split(chr(10))[-1]}", " ".join(command))] if done.returncode else []
    return Outcome(name, time.monotonic() - began, not failed, failed)


def tests(path: Path, env: dict[str, str]) -> Outcome:
    "The tests of one file."
    name, began = str(path.relative_to(ROOT)), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            PYTHON,
            "-m",
            "pytest",
            "-q",
            "--tb=short",
            "-rs",
            "-o",
            "junit_family=xunit1",
            f"--junitxml={folder}/tests.xml",
            name,
        ]
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        cases = list(xml.parse(f"{folder}/tests.xml").iter("testcase")) if Path(folder, "tests.xml").exists() else []
    again = f"OMP_NUM_THREADS=1 {BIN}/python -m pytest"
    failed = [
        (f"{name}::{case.get('name')}, {where(bad)}", f"{again} '{name}::{case.get('name')}'")
        for case in cases
        for bad in (*case.findall("failure"), *case.findall("error"))
    ]
    passed = sum(not len(case) or case[0].tag not in ("failure", "error", "skipped") for case in cases)
    if done.returncode and not failed:
        failed = [
            (
                f"{name}: pytest ended with {done.returncode}: {done.stdout.strip().split(chr(10))[-1]}",
                f"{again} {name}",
            )
        ]
    if failed or "SKIPPED" in done.stdout:
        print(f"-- {name}\n{done.stdout[-6000:]}", flush=True)
    return Outcome(name, time.monotonic() - began, passed, failed)


def where(bad: xml.Element) -> str:
    "File, line and text of the last line of a test that a failure came through, and what it says."
    lines = [line for line in (bad.text or "").split("\n") if line.strip()]
    at = max((k for k, line in enumerate(lines) if line.startswith("tests/") and ": in " in line), default=None)
    place = (
        f"{lines[at].split(': in ')[0]}: {lines[at + 1].strip()}  " if at is not None and at + 1 < len(lines) else ""
    )
    return f"{place}[{(bad.get('message') or '').split(chr(10))[0]}]"


if __name__ == "__main__":
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as runs:
        env = environment(runs)
        outcomes = [step(name, env) for name in STEPS]
        files = sorted((ROOT / "tests").glob("test_*.py"))
        outcomes += side_by_side([*notebooks(), *files], env, {".py": partial(tests, env=env)})
    sys.exit(report(outcomes, began))

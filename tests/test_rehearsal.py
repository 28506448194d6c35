"""The dress rehearsal in small: the rows of the papers' tables that have every method, layout, protocol and decoder are
planned with their data, and a few of them run from miniature data sets to the table. `make rehearse` runs all."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dense_ssl.experiments.rehearse import kinds, planned_rows, sample

ROOT = Path(__file__).parents[1]
ROWS = ["pixdepth.T3.pixdepth"]  # of the sample, those that fit in the minutes of every test


def test_every_row_can_be_planned_and_the_sample_has_all_kinds(tmp_path):
    rows = planned_rows(tmp_path)
    assert {row.problem for row in rows} == {None, "quoted from the paper"}
    chosen, there = sample(rows), [row for row in rows if not row.problem]
    print(f"{len(chosen)} of {len(there)} rows:", *(row.id for row in chosen))
    assert set().union(*map(kinds, chosen)) == set().union(*map(kinds, there)) and len(chosen) < len(there) / 5
    assert sample(rows) == chosen  # by the tables alone


def test_a_row_ends(tmp_path):
    command = [sys.executable, "-m", "dense_ssl.experiments.rehearse", "--folder", tmp_path, "--cores", "2", "--tables"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *ROWS], cwd=ROOT, text=True, capture_output=True, env=env)
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert report["rows"] == dict.fromkeys(ROWS, "ended") and report["tables"] == ["pixdepth-T3.md"]

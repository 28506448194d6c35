"""The graph on a SLURM of one machine: a chain of two stages, a preempted job that goes on, a failed job that is
named."""

import os
import shutil
import subprocess

import pytest
from test_graph import ROOT, Graph, wait_for

PROFILE = ("--workflow-profile", str(ROOT / "nbs" / "10_experiments" / "slurm"), "--latency-wait", "5")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    "The configuration of a running one-machine SLURM."
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    if os.geteuid() != 0:
        pytest.skip("starting SLURM needs root")
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; as root, `tests/slurm.sh start FOLDER` starts one")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([ROOT / "tests" / "slurm.sh", "start", folder], capture_output=True, text=True)
    try:
        if started.returncode:
            pytest.skip(f"SLURM does not start here: {started.stderr.strip()[-300:]}")
        yield str(folder / "slurm.conf")
    finally:
        subprocess.run([ROOT / "tests" / "slurm.sh", "stop", folder], check=True)


def test_a_preempted_job_goes_on_and_a_failed_one_is_named(tmp_path, slurm, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm)
    (tmp_path / "broken").touch()
    graph = Graph(tmp_path, {"a": [], "b": ["a"], "x": []}, steps=30, x={"broken": str(tmp_path / "broken")})
    run = graph.start(2, *PROFILE)
    state = graph.runs / "prepare" / "a-00000000" / "state.json"
    wait_for(lambda: state.is_file() and '"step": 5' in state.read_text(), 240)
    # another's job takes the whole machine: SLURM ends the stage's job and queues it again
    other = ["sbatch", "--parsable", "-p", "urgent", "--exclusive", "--wrap", "sleep 3", "--output", "/dev/null"]
    subprocess.run(other, check=True, capture_output=True)
    failed = run.result(500)
    assert len(failed) == 1 and failed[0].startswith("x-00000000 (fake.T1.x)") and "this stage is broken" in failed[0]
    begun = [words[1][0] for words in graph.log() if words[0] == "begin"]
    ended = [words[1][0] for words in graph.log() if words[0] == "end"]
    assert begun.count("a") == 2 and ended.count("a") == 1, graph.log()  # preempted once, and finished
    assert ended == ["a", "b"]
    jobs = subprocess.run(["squeue", "-h", "-t", "all", "-o", "%T"], capture_output=True, text=True).stdout.split()
    assert set(jobs) <= {"COMPLETED", "FAILED"}, jobs
    clean = tmp_path / "clean"
    clean.mkdir()
    undisturbed = Graph(clean, {"a": [], "b": ["a"]}, steps=30)
    assert undisturbed.run() == [] and undisturbed.digests() == graph.digests()

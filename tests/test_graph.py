"""The graph of stages: side by side, past failures, killed at any moment and gone on with, each with GPUs of its own.
Its stages are
tiny notebooks; one real row runs in nbs/10_experiments/13_reproduce.ipynb."""

import hashlib
import json
import os
import shutil
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil

from dense_ssl.experiments.reproduce import carry_out
from dense_ssl.experiments.stage import is_current

ROOT = Path(__file__).parents[1]
WORK = """
import hashlib, os, subprocess, sys, time
from pathlib import Path
from dense_ssl.core import read_json, write_json
folder = Path(folder)
with open(folder.parents[1] / "log", "a") as log:
    print("begin", folder.name, os.environ["CUDA_VISIBLE_DEVICES"] or "-", time.time(), file=log)
if broken and Path(broken).is_file():
    raise ValueError("this stage is broken")
sleep = "from dense_ssl.processes import die_with_parent; die_with_parent(); import time; time.sleep(60)"
worker = subprocess.Popen([sys.executable, "-c", sleep])
state = read_json(folder / "state.json") if (folder / "state.json").is_file() else {"step": 0, "digest": "".join(
    read_json(Path(need) / "state.json")["digest"] for need in needs)}
while state["step"] < steps:  # it goes on from its last step
    state = {"step": state["step"] + 1, "digest": hashlib.sha256(f"{state}".encode()).hexdigest()}
    write_json(folder / "state.json", state)
    time.sleep(0.2)
    assert worker.poll() is None, "the worker was killed"
worker.kill()
with open(folder.parents[1] / "log", "a") as log:
    print("end", folder.name, os.environ["CUDA_VISIBLE_DEVICES"] or "-", time.time(), file=log)
"""


class Graph:
    """A plan of tiny stages below `folder`: name -> what it needs, and the rest of an entry."""

    def __init__(self, folder: Path, stages: dict[str, list[str]], steps: int = 1, gpus: int = 0, **parameters):
        self.runs, self.file = folder / "my runs", folder / "my graph.json"
        head = nbformat.v4.new_code_cell(
            "folder, needs, steps, broken = '', [], 1, ''", metadata={"tags": ["parameters"]}
        )
        nbformat.write(
            nbformat.v4.new_notebook(
                cells=[head, nbformat.v4.new_code_cell(WORK)],
                metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
            ),
            folder / "work.ipynb",
        )
        place = {name: self.runs / "prepare" / f"{name}-00000000" for name in stages}
        self.entries = [
            {
                "table": "fake.T1",
                "row": name,
                "seed": 0,
                "profile": "fake",
                "stage": "prepare",
                "kind": "prepare",
                "folder": str(place[name]),
                "notebook": str(folder / "work.ipynb"),
                "needs": [str(place[n]) for n in needs],
                "identity": {"name": name},
                "code": {},
                "cost": f"fake/prepare/{name}",
                "resources": {"threads": 1, "gpus": gpus, "mem_mb": 100, "runtime": 5},
                "parameters": {
                    "folder": str(place[name]),
                    "needs": [str(place[n]) for n in needs],
                    "steps": steps,
                    **parameters.get(name, {}),
                },
            }
            for name, needs in stages.items()
        ]
        self.runs.mkdir()

    def start(self, cores: int = 2, *options: str) -> Future:
        "What is not done, and why, once Snakemake has ended."

        done: set[str] = set()
        for entry in self.entries:
            if is_current(entry["folder"], entry["needs"]) and done >= {*entry["needs"]}:
                done.add(entry["folder"])
            entry["state"] = "done" if entry["folder"] in done else "to do"
        return ThreadPoolExecutor(1).submit(carry_out, self.entries, self.file, self.runs, cores, list(options))

    def run(self, cores: int = 2, *options: str) -> list[str]:
        return self.start(cores, *options).result(300)

    def log(self) -> list[list[str]]:
        return [line.split() for line in (self.runs / "log").read_text().splitlines()]

    def digests(self) -> dict[str, str]:
        return {p.parent.name: json.loads(p.read_text())["digest"] for p in self.runs.glob("prepare/*/state.json")}


def processes_of(folder: Path) -> list[psutil.Process]:
    "Everything that runs in, or was told of, a folder."
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in f"{process.cwd()} {process.cmdline()}":
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]


def wait_for(condition, seconds: float = 120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def test_a_graph_runs_past_failures_and_only_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    (tmp_path / "broken").touch()
    graph = Graph(tmp_path, {"a": [], "b": ["a"], "x": [], "y": ["x"]}, gpus=1, x={"broken": str(tmp_path / "broken")})
    failed = graph.run()
    assert len(failed) == 2 and failed[0].startswith("x-00000000 (fake.T1.x)")
    assert "ValueError: this stage is broken" in failed[0]
    assert failed[1].endswith("waits for x-00000000")
    names = [words[1][0] for words in graph.log() if words[0] == "begin"]
    assert sorted(names) == ["a", "b", "x"]
    # a and x at a time, each with a GPU of its own; no GPU with two stages
    held: dict[str, str] = {}
    for what, name, gpu, _ in graph.log():
        if name[0] == "x":
            continue  # which fails without an end
        assert held.pop(gpu) == name if what == "end" else held.setdefault(gpu, name) == name
    assert {words[2] for words in graph.log()} == {"3", "5"} and processes_of(tmp_path) == []

    (tmp_path / "broken").unlink()
    digests, before = graph.digests(), len(graph.log())
    shutil.rmtree(graph.runs / "prepare" / "a-00000000")
    (left := graph.runs / "prepare" / "b-00000000" / "coherence.json").touch()
    assert graph.run() == []
    names = [words[1][0] for words in graph.log()[before:] if words[0] == "begin"]
    assert sorted(names) == ["a", "b", "x", "y"]  # the deleted run and what depends on it, and what had failed
    assert graph.digests().items() >= digests.items() and not left.exists()  # b was made anew, not found

    before, began = graph.log(), os.times()
    assert graph.run(2, "--no-such-option") == [] and graph.log() == before  # Snakemake is not even started
    assert sum(os.times()[:4]) - sum(began[:4]) < 30  # processor time, of children too
    shutil.rmtree(graph.runs / "prepare" / "y-00000000")
    why = graph.run(2, "--no-such-option")  # its own words where no stage has any
    assert why[0].endswith("was not run") and "--no-such-option" in why[1] and graph.log() == before
    cost = json.loads((graph.runs / "prepare" / "a-00000000" / "cost.json").read_text())["costs"]["fake/prepare/a"]
    assert cost["seconds"] > 0.2 and cost["bytes"] > 100


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(tmp_path):
    graph = Graph(tmp_path, {"a": [], "b": ["a"]}, steps=20)
    folder = graph.runs / "prepare" / "a-00000000"
    words = {"worker": "time.sleep(60)", "papermill": "-m papermill", "snakemake": "-m snakemake"}
    for k, victim in enumerate(words):
        began, run = len(graph.log()) if k else 0, graph.start()
        wait_for(lambda began=began: (graph.runs / "log").is_file() and len(graph.log()) > began)
        time.sleep(0.3 + 0.4 * k)
        (found,) = [p for p in psutil.Process().children(recursive=True) if words[victim] in " ".join(p.cmdline())]
        os.kill(found.pid, signal.SIGKILL)
        failed = run.result(120)
        assert len(failed) == 2 + (victim == "snakemake") and "waits for a-00000000" in failed[1], failed
        (folder / "kept").touch()
        assert (
            "the worker was killed" if victim == "worker" else "SIGKILL" if victim == "papermill" else "was not run"
        ) in failed[0]
        wait_for(lambda: not processes_of(tmp_path), 20)  # a kernel looks once a second whether papermill is there
        assert not list(tmp_path.rglob("*.tmp")) and not (folder / "done.json").exists()
    assert graph.run() == [] and (folder / "kept").exists()  # it went on, and did not begin again

    def digest(state: dict) -> str:
        for step in range(20):
            state = {"step": step + 1, "digest": hashlib.sha256(f"{state}".encode()).hexdigest()}
        return state["digest"]

    a = digest({"step": 0, "digest": ""})
    assert graph.digests() == {"a-00000000": a, "b-00000000": digest({"step": 0, "digest": a})}

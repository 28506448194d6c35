"""Checks, throughput, kernels and training on a GPU in one rehearsed command, for a machine that one has for minutes
and without a network.

    python benchmarks/gpu/run.py --out DIR [--minutes 9] [--device cuda] [--stages checks throughput ...] [--tiny]
    [--data NYUV2]

Stages come in the order of their worth. Each has its own time limit and writes DIR/STAGE.json the moment it ends; one
that fails, hangs or kills
its process leaves the end of its log there and the others go on. What DIR already has for this commit and device is
not run again. `--device cpu
--tiny` is the rehearsal: the same code in a minute or two. Exit status 1 where a stage failed; 0 where time ran out
before all had begun, which
the summary says.
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [
    str(HERE),
    str(HERE.parents[1]),
]  # the stages, and the package of this tree whether or not it is installed

from dense_ssl.core import environment, read_json, write_json  # noqa: E402
from dense_ssl.processes import die_with_parent, kill_group  # noqa: E402

# What imports torch stands in the worker's functions: the process that watches it starts at once and costs nothing.


def stages(tiny: bool) -> dict:
    """Name to (function of (device, tiny, options), limit in seconds), in order; tiny: one trained row, which is the
    code of all."""
    import checks
    import kernels
    import throughput
    import training

    rows = {n: s for n, s in training.STAGES.items() if not tiny or n in ("train-random", "train-depth-max3")}
    return {**checks.STAGES, **throughput.STAGES, **kernels.STAGES, **rows}


def broken() -> None:
    raise RuntimeError("a fault that was asked for")


WORKERS = {"cuda": 1, "cpu": 2}
LATE = ": the time for all stages is over"
FAULTS = {"raise": broken, "kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "hang": lambda: time.sleep(1e6)}


def record(out: Path, name: str, facts: dict, **values) -> dict:
    "Write a stage's JSON."
    result = {"stage": name, **facts, **values}
    write_json(out / f"{name}.json", result)
    return result


def plan(a: argparse.Namespace) -> dict:
    """What is to be run, of what is there: written to DIR/plan.json, from which a worker and the process that watches
    it both read."""
    import torch

    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --device cpu --tiny rehearses the same code")
    known = stages(a.tiny)
    wanted = [n for n in known if not a.stages or n.startswith(tuple(a.stages))]
    if not wanted:
        sys.exit(f"no stage begins with {', '.join(a.stages)}; there are {', '.join(known)}")
    device = torch.cuda.get_device_name() if a.device == "cuda" else "CPU, 1 thread"
    facts = {"commit": a.commit or environment()["commit"], "device": device, "tiny": a.tiny}
    kept = {n: read_json(f) for n in wanted if (f := a.out / f"{n}.json").exists()}
    todo = [n for n in wanted if not (kept.get(n, {}).get("ok") and all(kept[n].get(k) == v for k, v in facts.items()))]
    for name in todo:
        (a.out / f"{name}.json").unlink(missing_ok=True)
    limits = {n: known[n][1] * (1 if a.device == "cuda" else 5) for n in wanted}  # a busy CPU is no failure
    planned = {"wanted": wanted, "todo": todo, "limits": limits, "facts": facts}
    write_json(a.out / "plan.json", planned)
    return planned


def waiting(a: argparse.Namespace, worker: int) -> list[str]:
    "What is left of a worker's stages: all on a GPU, every second one of a rehearsal, which has two workers."
    mine = read_json(a.out / "plan.json")["todo"][worker :: WORKERS[a.device]]
    return [name for name in mine if not (a.out / f"{name}.json").exists()]


def work(a: argparse.Namespace) -> None:
    """In a process of its own: one stage after another. A failure on a GPU ends the process, since its context may be
    lost."""
    die_with_parent()
    import torch

    known = stages(a.tiny)
    while a.worker and not (a.out / "plan.json").exists():  # the first worker plans
        time.sleep(0.1)
    facts = (read_json(a.out / "plan.json") if (a.out / "plan.json").exists() else plan(a))["facts"]
    for name in waiting(a, a.worker):
        write_json(a.out / f"running-{a.worker}.json", {"stage": name, "began": time.time()})
        began = time.perf_counter()
        try:
            if name in a.fault:
                FAULTS[a.fault[name]]()
            result = known[name][0](a.device, a.tiny, a)
            values = {"ok": not result.get("failed"), **result}
        except Exception:
            print(text := traceback.format_exc(), flush=True)
            values = {"ok": False, "error": text.splitlines()[-12:]}
        record(a.out, name, facts, seconds=round(time.perf_counter() - began, 1), **values)
        if "error" in values and a.device == "cuda":
            sys.exit(3)
        gc.collect()
        if a.device == "cuda":
            torch.cuda.empty_cache()


def surroundings(device: str) -> dict[str, str]:
    "The environment of a worker and of all that it starts: this tree's package before others."
    path = os.pathsep.join([str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    return env if device == "cuda" else {**env, "OMP_NUM_THREADS": "1"}


def until(a: argparse.Namespace, began: float) -> float:
    "When the stages must end: so many minutes after the first worker had started, which itself has five."
    planned = a.out / "plan.json"
    return planned.stat().st_mtime + 60 * a.minutes if planned.exists() else began + 300


def over(process: subprocess.Popen, a: argparse.Namespace, worker: int, began: float) -> bool:
    """Whether a worker has ended, or was ended because a stage or all of them are out of time; then a stage that could
    not write its JSON has one."""
    running = a.out / f"running-{worker}.json"
    ended, late = process.poll() is not None, time.time() > until(a, began)
    now = read_json(running) if running.exists() else {"stage": None, "began": time.time()}
    name, took = now["stage"], time.time() - now["began"]
    planned = read_json(a.out / "plan.json") if name else {}
    limit = planned["limits"][name] if name else float("inf")
    if not ended and not late and took <= limit:
        return False
    kill_group(process)
    if name and not (a.out / f"{name}.json").exists():
        why = f"stopped after {took:.0f} s" + (f", its limit is {limit} s" if took > limit else LATE)
        why = f"the process ended with status {process.returncode}" if ended else why
        lines = (a.out / f"log-{worker}.txt").read_text(errors="replace").splitlines()
        record(a.out, name, planned["facts"], ok=False, seconds=round(took, 1), error=[why, *lines[-12:]])
    return True


def start(a: argparse.Namespace, worker: int) -> subprocess.Popen:
    "A worker; what it says goes to DIR/log-WORKER.txt."
    (a.out / f"running-{worker}.json").unlink(missing_ok=True)
    words = [sys.executable, __file__, *sys.argv[1:], "--worker", str(worker)]
    with open(a.out / f"log-{worker}.txt", "ab") as log:
        return subprocess.Popen(
            words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=surroundings(a.device)
        )


def watch(a: argparse.Namespace, began: float) -> None:
    "Workers, one after another on each lane, until all stages have ended or time is over."
    lanes = {worker: start(a, worker) for worker in range(WORKERS[a.device])}
    try:
        while lanes:
            time.sleep(0.2)
            for worker in [w for w, process in lanes.items() if over(process, a, w, began)]:
                del lanes[worker]
                planned = (a.out / "plan.json").exists()
                if not planned or waiting(a, worker) and not (a.out / f"running-{worker}.json").exists():
                    log = a.out / f"log-{worker}.txt"
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    sys.exit(f"the worker did not start: {''.join(last)}; see {log}")
                if waiting(a, worker) and time.time() < until(a, began):
                    lanes[worker] = start(a, worker)
    finally:
        for process in lanes.values():
            kill_group(process)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9, help="for the stages, once the first process has started")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--stages", nargs="*", default=[], help="only those whose name begins so")
    parser.add_argument(
        "--data", default="", help="folder of NYUv2, for the training stages; without it they use the rooms"
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--commit", default="", help="where the tree came without its .git")
    parser.add_argument(
        "--fault",
        type=json.loads,
        default={},
        help=f"JSON: stage to one of {', '.join(FAULTS)}, to rehearse what follows",
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    a.out = a.out.resolve()
    a.out.mkdir(parents=True, exist_ok=True)
    if a.worker is not None:
        work(a)
        return 0
    began = time.time()
    (a.out / "plan.json").unlink(missing_ok=True)
    watch(a, began)
    for worker in range(WORKERS[a.device]):
        (a.out / f"running-{worker}.json").unlink(missing_ok=True)
    planned = read_json(a.out / "plan.json")
    todo = [n for n in planned["todo"] if not (a.out / f"{n}.json").exists()]
    return summary(a.out, planned, todo, time.time() - began)


def summary(out: Path, planned: dict, todo: list[str], seconds: float) -> int:
    "One line a stage; the exit status."
    failed, wanted = [], planned["wanted"]
    there = len(wanted) - len(planned["todo"])
    print(
        f"{planned['facts']['device']}, commit {planned['facts']['commit']}: {len(planned['todo'])} stages to run, ",
        end="",
    )
    print(f"{there} there already")
    for name in wanted:
        if name in todo:
            print(f"  not begun  {name}")
            continue
        result = read_json(out / f"{name}.json")
        print(f"  {'ok' if result['ok'] else 'FAILED':9}  {name}  {result['seconds']} s  {result.get('says', '')}")
        if not result["ok"]:
            failed.append(name)
            said = (result.get("failed") or result.get("error") or [])[-4:]
            print(*(f"               {line}" for line in said), sep="\n")
    counts = f"{len(wanted) - len(todo) - len(failed)} stages passed, {len(failed)} failed, {len(todo)} not begun"
    print(f"{counts}, in {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no worker stays behind
    sys.exit(main())

"""Checks, throughput, kernels and training on a GPU in one rehearsed command, for a machine that one has for minutes and without a network.

    python benchmarks/gpu/run.py --out DIR [--minutes 9] [--device cuda] [--stages checks throughput ...] [--tiny] [--data NYUV2]

Stages come in the order of their worth. Each has its own time limit and writes DIR/STAGE.json the moment it ends; one that fails, hangs or kills
its process leaves the end of its log there and the others go on. What DIR already has for this commit and device is not run again. `--device cpu
--tiny` is the rehearsal: the same code in some minutes. Exit status 1 where a stage failed; 0 where time ran out before all had begun, which
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

import torch  # noqa: E402

from dense_ssl.core import environment, read_json, write_json  # noqa: E402
from dense_ssl.processes import die_with_parent, kill_group  # noqa: E402


def stages() -> dict:
    "Name to (function of (device, tiny, options), limit in seconds), in order."
    import checks
    import kernels
    import throughput
    import training

    return {**checks.STAGES, **throughput.STAGES, **kernels.STAGES, **training.STAGES}


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU, 1 thread"


def broken() -> None:
    raise RuntimeError("a fault that was asked for")


FAULTS = {"raise": broken, "kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "hang": lambda: time.sleep(1e6)}


def record(out: Path, name: str, facts: dict, **values) -> dict:
    "Write a stage's JSON."
    result = {"stage": name, **facts, **values}
    write_json(out / f"{name}.json", result)
    return result


def work(names: list[str], a: argparse.Namespace, facts: dict) -> None:
    "In a process of its own: one stage after another. A failure on a GPU ends the process, since its context may be lost."
    die_with_parent()
    known = stages()
    for name in names:
        write_json(a.out / "running.json", {"stage": name, "began": time.time()})
        began = time.perf_counter()
        try:
            if name in a.fault:
                FAULTS[a.fault[name]]()
            result = known[name][0](a.device, a.tiny, a)
            record(
                a.out, name, facts, ok=not result.get("failed"), seconds=round(time.perf_counter() - began, 1), **result
            )
        except Exception:
            print(text := traceback.format_exc(), flush=True)
            record(
                a.out,
                name,
                facts,
                ok=False,
                seconds=round(time.perf_counter() - began, 1),
                error=text.splitlines()[-12:],
            )
            if a.device == "cuda":
                sys.exit(3)
        gc.collect()
        if a.device == "cuda":
            torch.cuda.empty_cache()


def surroundings(device: str) -> dict[str, str]:
    "The environment of a worker and of all that it starts: this tree's package before others."
    path = os.pathsep.join([str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    return env if device == "cuda" else {**env, "OMP_NUM_THREADS": "1"}


def watch(
    process: subprocess.Popen, a: argparse.Namespace, limits: dict[str, float], facts: dict, until: float
) -> str | None:
    "Until the worker has ended or was ended: the stage that it was in when a limit or a crash came, None where all is well."
    running, log = a.out / "running.json", a.out / "log.txt"
    while True:
        ended = process.poll() is not None
        now = read_json(running) if running.exists() else {"stage": None, "began": time.time()}
        name, took = now["stage"], time.time() - now["began"]
        over = name is not None and (took > limits[name] or time.time() > until)
        if not ended and not over:
            time.sleep(0.2)
            continue
        kill_group(process)
        there = name is not None and (a.out / f"{name}.json").exists()
        if ended and there:
            return None
        why = (
            f"the process ended with status {process.returncode}"
            if ended
            else f"stopped after {took:.0f} s"
            + (
                f", its limit is {limits[name]} s"
                if took > limits.get(name, 0)
                else ": the time for all stages is over"
            )
        )
        if name is not None and not there:
            record(
                a.out,
                name,
                facts,
                ok=False,
                seconds=round(took, 1),
                error=[why, *log.read_text(errors="replace").splitlines()[-12:]],
            )
        return name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
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
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --device cpu --tiny rehearses the same code")
    a.out = a.out.resolve()
    a.out.mkdir(parents=True, exist_ok=True)
    facts = {"commit": a.commit or environment()["commit"], "device": device_name(a.device), "tiny": a.tiny}
    if a.worker is not None:
        work(a.worker, a, facts)
        return 0
    began, known = time.time(), stages()
    until = began + 60 * a.minutes
    wanted = [n for n in known if not a.stages or n.startswith(tuple(a.stages))]
    if not wanted:
        sys.exit(f"no stage begins with {', '.join(a.stages)}; there are {', '.join(known)}")
    kept = {n: read_json(f) for n in wanted if (f := a.out / f"{n}.json").exists()}
    todo = [n for n in wanted if not (kept.get(n, {}).get("ok") and all(kept[n].get(k) == v for k, v in facts.items()))]
    for name in todo:
        (a.out / f"{name}.json").unlink(missing_ok=True)
    limits = {n: limit * (1 if a.device == "cuda" else 5) for n, (_, limit) in known.items()}  # a busy CPU is no failure
    print(
        f"{facts['device']}, commit {facts['commit']}: {len(todo)} stages to run, {len(wanted) - len(todo)} there already",
        flush=True,
    )
    while todo and time.time() < until:
        (a.out / "running.json").unlink(missing_ok=True)
        with open(a.out / "log.txt", "ab") as log:
            words = [w for w in sys.argv[1:] if w != "--worker"]
            process = subprocess.Popen(
                [sys.executable, __file__, *words, "--worker", *todo],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=surroundings(a.device),
            )
        try:
            stopped = watch(process, a, limits, facts, until)
        finally:
            kill_group(process)
        todo = [n for n in todo if not (a.out / f"{n}.json").exists()]
        if stopped is None and not (a.out / "running.json").exists():
            sys.exit(f"the worker did not start; see {a.out / 'log.txt'}")
    (a.out / "running.json").unlink(missing_ok=True)
    return summary(a.out, wanted, todo, time.time() - began)


def summary(out: Path, wanted: list[str], todo: list[str], seconds: float) -> int:
    "One line a stage; the exit status."
    failed = []
    for name in wanted:
        if name in todo:
            print(f"  not begun  {name}")
            continue
        result = read_json(out / f"{name}.json")
        print(f"  {'ok' if result['ok'] else 'FAILED':9}  {name}  {result['seconds']} s  {result.get('says', '')}")
        if not result["ok"]:
            failed.append(name)
            print(
                *(f"               {line}" for line in (result.get("failed") or result.get("error") or [])[-4:]),
                sep="\n",
            )
    print(
        f"{len(wanted) - len(todo) - len(failed)} stages passed, {len(failed)} failed, {len(todo)} not begun, in {seconds:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no worker stays behind
    sys.exit(main())

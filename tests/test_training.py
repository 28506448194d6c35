"""Pre-training in real processes: killed at random moments, split over ranks, on a full disk, with damaged files."""

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dense_ssl.core import is_done, read_json, write_json
from dense_ssl.models.encoders import build_encoder, read_weights
from dense_ssl.training.configuration import Launch, Pretrain, parse
from dense_ssl.training.launch import run_pretrain, worker_command
from dense_ssl.training.loop import Log, pretrain

ROOT = Path(__file__).parents[1]
SMALL = {
    "data": {"name": "room", "options": {"count": 12, "size": [48, 64]}},
    "method": "pixdepth",
    "encoder": "timm/test_resnet",
    "crop": 48,
    "method_options": {"hidden": 32, "out": 30},
    "batch_size": 4,
    "steps": 12,
    "warmup": 2,
    "lr": 0.05,
    "scale": (0.3, 1.0),
}
QUICK = {"log_every": 1, "tensorboard": False, "checkpoint_seconds": 0, "threads": 1}


def start(folder: Path, config: dict, launch: dict, **options) -> subprocess.Popen:
    "Start the worker of a run folder, marked in its environment so that its whole family can be found."
    write_json(folder / "params.json", parse(Pretrain, config).model_dump(mode="json"))
    write_json(folder / "launch.json", launch)
    return subprocess.Popen(
        worker_command(folder, parse(Launch, launch)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DENSE_SSL_MARK": str(folder)},
        start_new_session=True,
        **options,
    )


def family(mark: Path) -> list[int]:
    "The processes that carry `mark` in their environment and are not dead."
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                alive = process.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
                if alive and f"DENSE_SSL_MARK={mark}\0".encode() in process.joinpath("environ").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
    return found


def wait_for_step(folder: Path, step: int, seconds: float = 120) -> None:
    "Until the log has a line of `step` (or the run is done)."
    until = time.monotonic() + seconds
    while not is_done(folder) and not any(line["step"] >= step for line in Log.read(folder / "metrics.jsonl")):
        assert time.monotonic() < until, f"step {step} was not reached"
        time.sleep(0.02)


def gone(mark: Path, seconds: float = 15) -> bool:
    "Whether the whole family ends within `seconds`."
    until = time.monotonic() + seconds
    while family(mark) and time.monotonic() < until:
        time.sleep(0.1)
    return not family(mark)


def kill_at(folder: Path, config: dict, launch: dict, step: int, later: float = 0.0) -> None:
    "Start or go on with a run, and kill it `later` seconds after it has logged `step`: nobody of its family is left."
    process = start(folder, config, launch)
    wait_for_step(folder, step)
    time.sleep(later)
    process.kill()
    process.wait()
    assert gone(folder), family(folder)


def finish(folder: Path, config: dict, launch: dict) -> None:
    "Carry out or go on with a run in a worker's process, or in several under torchrun."
    process = start(folder, config, launch)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def run_here(folder: Path, config: dict, launch: dict) -> None:
    "The same in this process, which has already imported everything: for runs that nobody kills."
    pretrain(parse(Pretrain, config), folder, parse(Launch, launch | {"progress": False}))


def same_bits(a: Path, b: Path, *files: str) -> bool:
    "Whether the encoders of two runs are the same, and the weights in `files`."
    for name in ("encoder.safetensors", *files):
        first, second = (read_weights(f / name) for f in (a, b))
        if first.keys() != second.keys() or not all(torch.equal(first[k], second[k]) for k in first):
            return False
    return True


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in Log.read(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    "An uninterrupted run without loader workers."
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder, SMALL, QUICK)
    return folder


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory) -> Path:
    "The same run split over two processes, uninterrupted."
    folder = tmp_path_factory.mktemp("whole-of-two")
    finish(folder, SMALL, QUICK | {"processes": 2})
    return folder


def test_killed_worker_ends_with_the_same_bits(whole, tmp_path):
    "Killed with none, one and two loader workers, in any order; what another number of workers left is gone on with."
    chance = random.Random()
    print("seed", seed := chance.randrange(10**6))
    chance.seed(seed)
    for workers in chance.sample((0, 1, 2), 3):
        kill_at(tmp_path, SMALL, QUICK | {"workers": workers}, chance.randrange(0, 11), chance.random() * 0.2)
        assert not list(tmp_path.glob("done.json")) or same_bits(whole, tmp_path)
        for file in tmp_path.glob("checkpoints/last.pt"):
            assert read_weights(file)["step"] > 0  # what has its final name is whole, at whatever moment the kill came
    run_here(tmp_path, SMALL, QUICK | {"workers": chance.randrange(3)})
    assert same_bits(whole, tmp_path) and losses(tmp_path) == losses(whole) and len(losses(whole)) == 12


def test_two_processes_walk_the_losses_of_one(whole, whole_of_two, tmp_path):
    """In float64, where it can be seen: the same losses, step by step (to 1e-6: Fabric returns a float32), and the
    same weights.

    In float32 the first losses agree to 1e-5; from then on sums in another order let single ReLUs flip, one in a
    million, and each
    flip moves a gradient by a thousandth, so that paths part slowly. Nothing is wrong then, and nothing can be tested.
    """
    config = SMALL | {"encoder": "resnet18", "output_stride": 16, "steps": 6, "batch_size": 8, "precision": "64-true"}
    one, two, single = (tmp_path / name for name in ("one", "two", "single"))
    run_here(one, config, QUICK | {"checkpoint_seconds": 1e9})
    finish(two, config, QUICK | {"checkpoint_seconds": 1e9, "processes": 2})
    difference = max(abs(a - b) for a, b in zip(losses(one), losses(two), strict=True))
    print("largest difference of the losses in float64:", difference)
    assert difference < 1e-6 and read_json(two / "done.json")["world_size"] == 2
    a, b = (read_weights(f / "encoder.safetensors") for f in (one, two))
    assert max((a[k].double() - b[k].double()).abs().max().item() for k in a) < 1e-8
    run_here(single, config | {"precision": "32-true", "steps": 1, "warmup": 0}, QUICK)
    assert abs(losses(whole)[0] - losses(whole_of_two)[0]) < 1e-5 and abs(losses(single)[0] - losses(one)[0]) < 1e-4


def test_accumulated_micro_batches_are_one_step(tmp_path):
    "A transformer in two micro-batches: as many steps, and a first loss near that of the whole batch."
    config = SMALL | {
        "encoder": "timm/test_vit",
        "crop": 160,
        "data": {"name": "room", "options": {"count": 8, "size": [160, 160]}},
        "steps": 3,
        "precision": "64-true",
        "method_options": {"hidden": 32, "out": 30},
    }
    run_here(tmp_path / "one", config, QUICK)
    run_here(tmp_path / "two", config | {"accumulate": 2}, QUICK)
    assert (
        abs(losses(tmp_path / "one")[0] - losses(tmp_path / "two")[0]) < 0.1
    )  # the projector's batch norm sees half the batch
    assert read_json(tmp_path / "two" / "done.json")["steps"] == 3


def test_one_rank_killed(whole_of_two, tmp_path):
    two = QUICK | {"processes": 2}
    process = start(tmp_path, SMALL, two)
    wait_for_step(tmp_path, 4)
    ranks = [pid for pid in family(tmp_path) if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(ranks[0], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0 and gone(tmp_path) and not is_done(tmp_path)
    finish(tmp_path, SMALL, two)
    assert same_bits(whole_of_two, tmp_path)


def test_torchrun_killed_leaves_no_orphans(tmp_path):
    process = start(tmp_path, SMALL | {"steps": 500}, QUICK | {"processes": 2, "workers": 1})
    wait_for_step(tmp_path, 2)
    assert len(family(tmp_path)) >= 5  # torchrun, two ranks, a loader worker each
    process.kill()
    process.wait()
    assert gone(tmp_path), family(tmp_path)


def papermill(out: Path, runs: Path, steps: int) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "nbs/10_experiments/02_pretrain.ipynb"),
        str(out),
        "--no-progress-bar",
        "-p",
        "steps",
        str(steps),
        "-p",
        "encoder",
        "timm/test_resnet",
        "-y",
        json.dumps({"settings": {"warmup": 1}, "runs": str(runs), "launch": QUICK | {"workers": 1}}),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, "DENSE_SSL_MARK": str(runs), "OMP_NUM_THREADS": "1"},
    )


def test_papermill_killed(tmp_path):
    "Killed with its kernel and its worker, and started again: the bits of an uninterrupted run of the same parameters."
    process = papermill(tmp_path / "out.ipynb", tmp_path, 40)
    while not list(tmp_path.glob("pretrain/*/launch.json")):
        assert process.poll() is None, "papermill ended before its worker started"
        time.sleep(0.05)
    folder = next(tmp_path.glob("pretrain/*"))
    wait_for_step(folder, 3)
    process.kill()
    process.wait()
    assert gone(tmp_path), family(tmp_path)
    assert not is_done(folder) and papermill(tmp_path / "out.ipynb", tmp_path, 40).wait(300) == 0
    run_here(tmp_path / "whole", {k: v for k, v in read_json(folder / "params.json").items() if k != "code"}, QUICK)
    assert same_bits(tmp_path / "whole", folder) and is_done(folder) and len(list(tmp_path.glob("pretrain/*"))) == 1


def test_a_run_begins_where_another_ended(tmp_path):
    "Its weights before the first step are those of the other's end; another architecture is one sentence."
    run_here(tmp_path / "first", SMALL | {"steps": 2}, QUICK)
    begin = SMALL | {"steps": 1, "warmup": 0, "start": str(tmp_path / "first"), "snapshots": 2}
    run_here(tmp_path / "second", begin, QUICK)
    assert same_bits(tmp_path / "first", tmp_path / "second" / "snapshots" / "0000000")
    assert not same_bits(tmp_path / "first", tmp_path / "second")
    with pytest.raises(ValueError, match="first/encoder.safetensors holds another architecture"):
        run_here(tmp_path / "third", begin | {"encoder": "resnet18"}, QUICK)


def test_full_disk_is_one_sentence_and_loses_nothing(whole, tmp_path):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    run_here(tmp_path, SMALL | {"steps": 2}, QUICK)
    done = (tmp_path / "encoder.safetensors").read_bytes()
    (tmp_path / "done.json").unlink()
    process = start(tmp_path, SMALL, QUICK, preexec_fn=small_files)
    _, said = process.communicate(timeout=120)
    last = said.strip().splitlines()[-1]
    assert (
        process.returncode == 1 and "last.pt could not be written: the disk is full" in last and "Traceback" not in said
    ), said
    assert (tmp_path / "encoder.safetensors").read_bytes() == done and not list(
        (tmp_path / "checkpoints").glob("last.pt")
    )
    run_here(tmp_path, SMALL, QUICK)
    assert same_bits(whole, tmp_path)


def test_damaged_checkpoint(tmp_path):
    "Of another architecture, then cut in half: refused, the second time by a worker, in one sentence."
    process = start(tmp_path, SMALL | {"steps": 500}, QUICK)
    wait_for_step(tmp_path, 2)
    process.kill()
    process.wait()
    with pytest.raises(ValueError, match="last.pt does not fit this run's method") as error:
        run_here(tmp_path, SMALL | {"encoder": "resnet18"}, QUICK)
    assert "\n" not in str(error.value)
    file = tmp_path / "checkpoints" / "last.pt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    process = start(tmp_path, SMALL, QUICK)
    _, said = process.communicate(timeout=120)
    last = said.strip().splitlines()[-1]
    assert process.returncode == 1 and "last.pt is damaged or cut off" in last and "Traceback" not in said, said


class Evil:
    "What a hostile checkpoint holds: code that runs when it is unpickled."

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_executes_nothing(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save({"step": 1, "method": Evil(tmp_path / "touched"), "optimizer": {}}, tmp_path / "checkpoints" / "last.pt")
    with pytest.raises(ValueError, match="not a plain weights file") as error:
        run_here(tmp_path, SMALL, QUICK)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "touched").exists()
    torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=False)
    assert (tmp_path / "touched").exists()  # it would have


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_optimizers_with_bf16_clipping_and_accumulation(tmp_path, optimizer):
    config = SMALL | {
        "optimizer": optimizer,
        "precision": "bf16-mixed",
        "clip": 1.0,
        "accumulate": 2,
        "steps": 3,
        "weight_decay": 1e-4,
        "lr": 1e-3 if optimizer == "adamw" else 0.05,
    }
    run_here(tmp_path, config, QUICK)
    torch.manual_seed(config.get("seed", 0))
    before, after = build_encoder(config["encoder"]).body.state_dict(), read_weights(tmp_path / "encoder.safetensors")
    moved = [k for k in before if before[k].is_floating_point() and not torch.equal(before[k], after[k])]
    assert len(moved) > 0.9 * sum(v.is_floating_point() for v in before.values())
    assert all(v.isfinite().all() for v in after.values()) and len(losses(tmp_path)) == 3


def test_two_nodes(whole_of_two, tmp_path):
    """Two torchruns that meet at an address, as on two machines; one log, one result, the path of two processes on one
    node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = QUICK | {"nodes": 2, "rdzv_endpoint": f"127.0.0.1:{port}"}
    first = start(tmp_path, SMALL, nodes)
    second = start(tmp_path, SMALL, nodes)
    for process in (first, second):
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0, said
    assert same_bits(tmp_path, whole_of_two) and losses(tmp_path) == losses(whole_of_two)


def test_a_bad_image_is_skipped_counted_and_named(tmp_path):
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for k in range(8):
        Image.effect_noise((64, 64), 50 + k).convert("RGB").save(images / f"{k}.jpg")
    (images / "3.jpg").write_bytes((images / "3.jpg").read_bytes()[:800])
    config = SMALL | {"data": {"name": "folder", "root": str(images)}, "method": "pixpro", "steps": 4}
    run_here(tmp_path / "run", config, QUICK)
    done = read_json(tmp_path / "run" / "done.json")
    assert done["skipped"] == 1 and "3.jpg" in done["skipped_messages"][0]
    with pytest.raises(ValueError, match="3.jpg") as error:
        run_here(tmp_path / "strict", config | {"strict": True}, QUICK)
    assert "\n" not in str(error.value)


TERMINAL = """
import json, sys
from dense_ssl.training.configuration import Launch, Pretrain, parse
from dense_ssl.training.launch import run_pretrain
config, launch, runs = json.loads(sys.argv[1])
print(run_pretrain(parse(Pretrain, config), parse(Launch, launch), runs=runs))
"""


def terminal(config: dict, launch: dict, runs: Path) -> subprocess.Popen:
    "The same command in another terminal."
    return subprocess.Popen(
        [sys.executable, "-c", TERMINAL, json.dumps([config, launch, str(runs)])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DENSE_SSL_MARK": str(runs)},
        start_new_session=True,
    )


def test_two_terminals_and_one_run(whole, tmp_path):
    "The second is told who has the run; the holder killed, the next start goes on, and each step is logged once."
    first = terminal(SMALL | {"steps": 500}, QUICK, tmp_path)
    while not list(tmp_path.glob("pretrain/*/launch.json")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    folder = next(tmp_path.glob("pretrain/*"))
    wait_for_step(folder, 2)
    config = parse(Pretrain, SMALL | {"steps": 500})
    with pytest.raises(RuntimeError, match=f"is being worked on by process {first.pid} on ") as error:
        run_pretrain(config, parse(Launch, QUICK), runs=tmp_path)
    assert "\n" not in str(error.value) and not is_done(folder)
    first.kill()
    first.communicate()
    assert gone(tmp_path), family(tmp_path)
    logged = len(losses(folder))
    second = terminal(SMALL | {"steps": 500}, QUICK, tmp_path)
    wait_for_step(folder, logged + 2)
    second.kill()
    second.communicate()
    steps = [line["step"] for line in Log.read(folder / "metrics.jsonl")]
    assert steps == list(range(len(steps))) and len(list(tmp_path.glob("pretrain/*"))) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_the_workers_sentence_comes_first(processes, tmp_path):
    "What a user can mend is one sentence, from one process or several; the traceback is in the file that it names."
    config = SMALL | {"batch_size": 5, "accumulate": 2}
    with pytest.raises(RuntimeError, match="^batch_size 5 is global and must be a multiple of ") as error:
        run_pretrain(parse(Pretrain, config), parse(Launch, QUICK | {"processes": processes}), runs=tmp_path)
    said, _, rest = str(error.value).partition(" (traceback: ")
    assert "\n" not in str(error.value) and "Traceback" in Path(rest.removesuffix(")")).read_text()

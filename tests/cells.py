"""The code cells of one notebook, in order, as nbdev_test runs them. What fails: cell, line, numbers.

python tests/cells.py nbs/01_geometry/04_regions.ipynb
"""

import linecache
import multiprocessing
import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from asserts import Asserts, false
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.config import get_config
from nbdev.process import NBProcessor

ROOT = Path(__file__).parents[1]


def rests(cell, flags: set[str]) -> bool:
    "Whether a cell is not run: no code, `#| eval: false`, or a flag of settings.ini such as `#| slow`."
    directives = getattr(cell, "directives_", None) or {}
    return (
        cell.cell_type != "code"
        or directives.get("eval:", [""])[0].lower() == "false"
        or bool(flags & directives.keys())
    )


def line_of(error: BaseException) -> tuple[int, str]:
    "Number and text of the deepest line of a cell that an error came through."
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if "ipython-input" in f.filename or "ipykernel" in f.filename
    ]
    return (frames[-1].lineno, linecache.getline(frames[-1].filename, frames[-1].lineno).strip()) if frames else (0, "")


def run(path: Path) -> str:
    "Where and how the notebook failed, or nothing."
    os.environ["IN_TEST"] = "1"
    name, flags = path.resolve().relative_to(ROOT), set(get_config(path=ROOT).tst_flags.split())
    notebook, shell = NBProcessor(path, process=True).nb, CaptureShell(path)
    asserts = Asserts()
    shell.ast_transformers.append(asserts)
    with working_directory(path.parent):
        for cell in notebook.cells:
            if rests(cell, flags):
                continue
            asserts.where = f"{name}#{cell.id}"
            shell.cell(cell)
            if error := shell.exc:
                print("".join(traceback.format_exception(error)))
                line, text = line_of(error)
                said = (str(error) or ", ".join(false[-1:]) and f"{false[-1]} is false").strip().split("\n")[0]
                where = f"{name}, cell {cell.idx_ + 1} ({cell.id}), line {line}"
                return f"{where}: {text}  [{type(error).__name__}{': ' * bool(said)}{said}]"
    return ""


def end_with(other: Connection) -> None:
    "End this process when nobody holds the other end of a pipe any more: whoever asked for it was killed."
    other.poll(None)
    os._exit(1)


def run_apart(path: Path, out: Path, err: Path, env: dict[str, str], asked: Connection) -> None:
    "The same as the command above, in a process that was forked: what it says goes to the files `out` and `err`."
    threading.Thread(target=end_with, args=(asked,), daemon=True).start()
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(env)
    multiprocessing.set_start_method(None, force=True)  # what a notebook starts, it starts as on its own
    sys.path.insert(0, str(ROOT))
    sys.exit(run(path) or None)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if words := run(Path(sys.argv[1]).resolve()):
        sys.exit(words)

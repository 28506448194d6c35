"""nbs/how_to_add.ipynb, followed to the letter in a copy of the tree: its files, its lines, its command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import nbformat

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(?:python|yaml|bash)\n(.*?)```", re.S)


def page() -> str:
    cells = nbformat.read(ROOT / "nbs" / "how_to_add.ipynb", 4).cells
    assert all(c.cell_type == "markdown" for c in cells)
    return "\n".join(c.source for c in cells)


def add(tree: Path, path: str, blocks: list[str]) -> None:
    "A new file, or a new notebook with a code cell for each block."
    assert not (tree / path).exists()
    if path.endswith(".ipynb"):
        nbformat.write(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(b.strip("\n")) for b in blocks]), tree / path
        )
    else:
        (tree / path).write_text("".join(blocks))


def insert(tree: Path, path: str, after: str, line: str) -> None:
    "A line after the first one that begins with `after`."
    text, found = (tree / path).read_text(), json.dumps(after)[1:-1] if path.endswith(".ipynb") else after
    new = json.dumps(line)[1:-1] if path.endswith(".ipynb") else line
    assert line.count("\n") == 1 and found in text, path
    if path.endswith(".ipynb"):  # a line of a cell is a line of the file, in quotes
        at = re.search(rf'^( *)"{re.escape(found)}.*\\n",$', text, re.M)
        (tree / path).write_text(f'{text[: at.end()]}\n{at[1]}"{new}",{text[at.end() :]}')
    else:
        at = re.search(rf"^{re.escape(found)}.*$", text, re.M)
        (tree / path).write_text(f"{text[: at.end()]}\n{new.rstrip(chr(10))}{text[at.end() :]}")


def test_the_page_works_as_it_stands(tmp_path):
    for part in ("nbs", "dense_ssl"):
        copytree(ROOT / part, tmp_path / part, ignore=ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    steps = re.split(r"\*\*One (new notebook|new file|line)\*\*, ", page())
    kinds = steps[1::2]
    assert [kinds.count(k) for k in ("new notebook", "new file", "line")] == [3, 1, 4]
    for kind, text in zip(kinds, steps[2::2], strict=True):
        names, blocks = re.findall(r"`([^`\n]+)`", text.partition("\n")[0]), BLOCK.findall(text)
        if kind == "line":
            insert(tmp_path, names[0], names[1], blocks[0])
        else:
            add(tmp_path, names[0], [b for b in blocks if not b.startswith("python -m")])
    (command,) = [b.strip() for b in BLOCK.findall(steps[-1]) if b.startswith("python -m")]
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "DENSE_SSL_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    env |= {"DENSE_SSL_RUNS": str(tmp_path / "runs")}

    def run(*words: str) -> None:
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

    run(str(Path(sys.executable).parent / "nbdev_export"))
    run(sys.executable, *command.split()[1:])
    table = (tmp_path / "figures" / "smoke" / "mine-T1.md").read_text()
    assert "| nearest cell |" in table
    numbers = re.findall(r"^\| (scratch|Colours) \| ([\d.]+) \| 1 \|", table, re.M)
    assert [name for name, _ in numbers] == ["scratch", "Colours"] and all(20 < float(n) <= 100 for _, n in numbers), (
        table
    )

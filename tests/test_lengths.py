"""Short cells, short lines: what one reads at a time fits on a screen."""

import json
import statistics
from pathlib import Path

import pytest
from notebooks import ROOT

NOTEBOOKS = sorted(p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
LINE, CELL, MEDIAN = 120, 40, 15


def exported(source: str) -> bool:
    return any(line.replace(" ", "").startswith("#|export") for line in source.split("\n"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_lengths(path: Path) -> None:
    cells = [c for c in json.loads((ROOT / path).read_text())["cells"] if c["cell_type"] == "code"]
    sources = {cell["id"]: "".join(cell["source"]) for cell in cells}
    lines = {k: [line for line in s.strip().split("\n") if not line.startswith("#|")] for k, s in sources.items()}
    wide = [f"#{k}: {line[:60]}..." for k, ls in lines.items() for line in ls if len(line) > LINE]
    counts = {k: len(lines[k]) for k, s in sources.items() if exported(s)}
    long = [f"#{k}: {n} lines" for k, n in counts.items() if n > CELL]
    assert not wide, f"lines of more than {LINE} characters: {wide}"
    assert not long, f"export cells of more than {CELL} lines: {long}"
    assert not counts or statistics.median(counts.values()) < MEDIAN, f"half of the export cells have {MEDIAN} lines"

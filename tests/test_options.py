"""What is written for options: every notebook's parameters as they are planned, and values that cannot be meant."""

import json
from pathlib import Path

import pytest

from dense_ssl.options import check_parameters

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs/10_experiments").glob("*.ipynb"))


def parameters(notebook: Path) -> dict:
    "The namespace of a notebook after its parameters' cell; empty for one that has none."
    cells = json.loads(notebook.read_text())["cells"]
    tagged = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    namespace: dict = {}
    for source in tagged:
        exec(source, namespace)
    return namespace


@pytest.mark.parametrize("notebook", [n for n in NOTEBOOKS if parameters(n)], ids=lambda n: n.name)
def test_parameters_are_checked_before_anything_else(notebook):
    "The cell after the parameters is the check; the defaults pass it and a typing error does not."
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    at = next(i for i, c in enumerate(cells) if "parameters" in c["metadata"].get("tags", []))
    assert "check_parameters(globals())" in "".join(cells[at + 1]["source"])
    given = parameters(notebook)
    check_parameters(given)
    for name in given["__annotations__"]:
        with pytest.raises(ValueError, match=f"^the notebook has no option '{name}x'; did you mean '[^\n]*$"):
            check_parameters(given | {f"{name}x": given[name]})


@pytest.mark.parametrize("profile", ["smoke", "quick", "small"])
def test_what_is_planned_is_what_notebooks_take(profile, tmp_path):
    "Every stage of a plan gives its notebook parameters that it has, of the kind that it wants."
    from dense_ssl.experiments.plan import as_json, plan

    stages = {e["folder"]: e for e in as_json(plan(profile, runs=tmp_path), profile) if e["folder"]}
    assert stages
    for stage in stages.values():
        check_parameters(parameters(ROOT / "nbs/10_experiments" / stage["notebook"]) | stage["parameters"])

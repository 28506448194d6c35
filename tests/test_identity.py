"""Which run an edit makes stale, in a copy of the package: the runs that use what was edited, and no other."""

import json
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

ROOT = Path(__file__).parents[1]
PROBE = """
import json, sys

from pathlib import Path
import dense_ssl
from dense_ssl.core import _source, changed_code, run_folder
from dense_ssl.training.configuration import Pretrain, parse
from dense_ssl.training.launch import run_modules

tree, runs = Path(dense_ssl.__file__).parent, Path(sys.argv[1])
assert tree == Path(sys.argv[2]), tree
short = {"steps": 2, "batch_size": 2, "crop": 48}
configs = {
    "pixdepth on rooms": {"method": "pixdepth", "data": {"name": "room"}},
    "pixpro on boreholes": {"method": "pixpro", "data": {"name": "borehole"}},
    "cpcdr with regions": {"method": "cpcdr", "data": {"name": "street", "options": {"proposals": "truth"}}},
    "scratch": {"method": "scratch", "data": {"name": "room"}, "steps": 0},
}
configs = {name: parse(Pretrain, {**short, **c}) for name, c in configs.items()}

def folders():
    _source.cache_clear()
    return {n: run_folder("pretrain", n, c.model_dump(mode="json"), run_modules(c), runs) for n, c in configs.items()}

before, stale = folders(), {}
for edited in sys.argv[3:]:
    path = tree / f"{edited}.py"
    code = path.read_text()
    path.write_text('\"\"\"Other words.\"\"\"\\n' + code.partition("\\n")[2] + "\\n# a comment\\n")
    assert folders() == before, edited
    path.write_text(code + "\\nedited = True\\n")
    now = folders()
    why = {n: changed_code(folder) for n, folder in before.items()}
    assert all((now[n] != before[n]) == bool(why[n]) for n in configs), edited
    stale[edited] = {n: reason for n, reason in why.items() if reason}
    path.write_text(code)
print("STALE", json.dumps(stale))
"""


def test_an_edit_makes_stale_what_uses_it(tmp_path):
    edited = {
        "methods/moco": set(),
        "methods/geosets": set(),
        "data/worlds/borehole": {"pixpro on boreholes"},
        "data/proposals": {"cpcdr with regions"},
        "geometry/regions": {"cpcdr with regions"},
        "evaluation/probe": set(),
        "methods/pixdepth": {"pixdepth on rooms", "pixpro on boreholes"},
        "positives/masks": {"pixdepth on rooms", "pixpro on boreholes"},
        "training/loop": {"pixdepth on rooms", "pixpro on boreholes", "cpcdr with regions", "scratch"},
    }
    tree = copytree(ROOT / "dense_ssl", tmp_path / "dense_ssl", ignore=ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", PROBE, tmp_path / "runs", tree, *edited]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    stale = json.loads(done.stdout.partition("STALE ")[2])
    assert {name: set(runs) for name, runs in stale.items()} == edited
    for name, runs in stale.items():
        assert all(reason == [f"dense_ssl.{name.replace('/', '.')}"] for reason in runs.values()), (name, runs)

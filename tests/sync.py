"""Export and clean, then nothing may differ from what is committed; every module must have its notebook."""

import re
import subprocess
import sys
from pathlib import Path

BIN, ROOT = Path(sys.executable).parent, Path(__file__).parents[1]
WATCHED = ["nbs", "dense_ssl"]


def state() -> dict[Path, bytes]:
    "Every file that is watched, with its content."
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *WATCHED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {Path(name): (ROOT / name).read_bytes() for name in files.stdout.splitlines() if (ROOT / name).is_file()}


before = state()
for command in ("nbdev_export", "nbdev_clean"):
    subprocess.run([BIN / command], cwd=ROOT, check=True)
after = state()
changed = sorted(str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p))
if changed:
    sys.exit(
        "these were not exported or not cleaned before the commit (they are now; look and commit): "
        + ", ".join(changed)
    )

for module in (ROOT / "dense_ssl").rglob("*.py"):
    source = re.search(r"File to edit: (\S+\.ipynb)", module.read_text())
    if (
        source
        and not (ROOT / "dense_ssl" / source[1]).resolve().exists()
        and not (module.parent / source[1]).resolve().exists()
    ):
        sys.exit(f"{module.relative_to(ROOT)} says it comes from {source[1]}, which does not exist; remove the module")
    if not source and module.name not in ("__init__.py", "_modidx.py"):
        sys.exit(f"{module.relative_to(ROOT)} comes from no notebook; the package is exported, not written")
print(len(after), "files are in sync")

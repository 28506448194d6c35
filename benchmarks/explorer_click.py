"""From a click in the similarity explorer to the new heatmap on the page, in JupyterLab in headless Chromium, at 32 x
32 x 2048 features.

    python benchmarks/explorer_click.py [--clicks 20] [--warm 3] [--out FILE]

Measured by the page itself: from the event until the browser has decoded every new map and is about to draw it.
Kernel, server and browser share the
machine. Features are random numbers, for their values do not matter. Once with one picture, once with two images under
three encoders, where a click
is answered by six maps. Prints JSON; `--out FILE` keeps it. Needs a browser, see tests/browser.sh.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import nbformat

from dense_ssl.core import environment, write_json
from dense_ssl.evaluation.metrics import hardware

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from lab import Lab, browser, missing

SETUP = """
import torch
from torch import nn
from dense_ssl.viz.explorer import Explorer

torch.set_num_threads(1)

class Made(nn.Module):
    stride = 32
    def forward(self, x):
        return torch.randn(len(x), 2048, x.shape[2] // 32, x.shape[3] // 32)

images = [torch.randint(0, 255, (3, 384, 384), dtype=torch.uint8) for _ in range(2)]
"""
CASES = {
    "one picture": "Explorer(images[0], Made(), size=1024, offered={})",
    "two images, three encoders": "Explorer(images, {k: Made() for k in 'abc'}, size=1024, offered={})",
}
CLICK = """async ([cell, x, y]) => {
    const output = document.querySelectorAll('.jp-Notebook .jp-Cell')[cell];
    const layers = () => [...output.querySelectorAll('.dense-over .dense-stack')];
    const face = output.querySelector('.dense-face'), box = face.getBoundingClientRect(), before = new Set(layers());
    const began = performance.now();
    face.dispatchEvent(new MouseEvent('click', {bubbles: true, clientX: box.left + x * box.width, clientY: box.top + y
    * box.height}));
    await new Promise(done => {
        const all = () => layers().length == before.size && layers().every(layer => !before.has(layer));
        const watch = new MutationObserver(() => { if (all()) { watch.disconnect(); done(); } });
        watch.observe(output, {childList: true, subtree: true});
    });
    await Promise.all(layers().map(layer => layer.querySelector('img').decode()));
    await new Promise(requestAnimationFrame);
    return performance.now() - began;
}"""


def measure(lab: Lab, cell: int, clicks: int, warm: int) -> list[float]:
    "Milliseconds from each click to its answer."
    lab.board(cell).faces.first.scroll_into_view_if_needed()
    times = []
    for k in range(warm + clicks):
        times.append(lab.page.evaluate(CLICK, [cell, (0.07 + 0.618 * k) % 1, (0.13 + 0.377 * k) % 1]))
        lab.page.wait_for_timeout(200)
    return times[warm:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--out")
    options = parser.parse_args()
    if missing():
        sys.exit(missing())
    result = {
        "what": "click to new heatmap in JupyterLab, ms",
        "features": "32x32x2048",
        "clicks": options.clicks,
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "nbs"
        folder.mkdir()
        cells = [nbformat.v4.new_code_cell(text.strip()) for text in (SETUP, *CASES.values())]
        (folder / "click.ipynb").write_text(
            nbformat.writes(
                nbformat.v4.new_notebook(
                    cells=cells,
                    metadata={"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}},
                )
            )
        )
        with browser(folder, Path(root) / "shots", Path(root) / "runs") as lab:
            lab.open("click.ipynb")
            result["browser"] = lab.page.context.browser.version
            for k, name in enumerate(CASES, 1):
                load = os.getloadavg()[0]
                times = measure(lab, k, options.clicks, options.warm)
                result["cases"][name] = {
                    "median": round(statistics.median(times), 1),
                    "slowest": round(max(times), 1),
                    "all": [round(t, 1) for t in times],
                    "load before": round(load, 2),
                }
    result |= {"hardware": hardware(), **environment()}
    print(json.dumps(result, indent=1))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()

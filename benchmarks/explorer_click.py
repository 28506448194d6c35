"""From a click in a clickable figure to the new maps on the page, in headless Chromium, without a kernel.

    python benchmarks/explorer_click.py [--clicks 20] [--warm 3] [--out FILE]

Measured by the page itself: from the event until the browser is about to draw the new maps. 32 x 32 cells of 64
channels, once with one encoder on two images, once with four encoders, where a click is answered by eight maps; the
features are random numbers, for their values do not matter. In JupyterLab the same module answers. Prints JSON;
`--out FILE` keeps it. Needs a browser, see tests/browser.sh.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from dense_ssl.core import environment, write_json
from dense_ssl.evaluation.metrics import hardware
from dense_ssl.viz.clickable import export_html

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from lab import FLAGS, chromium, missing

CASES = {"one encoder": 1, "four encoders": 4}
CLICK = """async ([x, y]) => {
    const face = document.querySelector('.dense-face'), box = face.getBoundingClientRect();
    await new Promise(requestAnimationFrame);
    const began = performance.now();
    face.dispatchEvent(new MouseEvent('click', {bubbles: true, clientX: box.left + x * box.width,
                                                clientY: box.top + y * box.height}));
    const computed = performance.now() - began;
    await new Promise(requestAnimationFrame);
    return [performance.now() - began, computed];
}"""


class Made(nn.Module):
    "Random features of 64 channels, stride 16."

    stride = 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(x), 64, x.shape[2] // 16, x.shape[3] // 16)


def measure(page, clicks: int, warm: int) -> list[list[float]]:
    "Milliseconds from each click to its maps, and of that what was computing."
    return [page.evaluate(CLICK, [(0.07 + 0.618 * k) % 1, (0.13 + 0.377 * k) % 1]) for k in range(warm + clicks)][warm:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--out")
    options = parser.parse_args()
    if missing():
        sys.exit(missing())
    from playwright.sync_api import sync_playwright

    result = {"what": "click to new maps on a page without a kernel, ms", "features": "32x32x64 int8",
              "clicks": options.clicks, "cases": {}}
    images = [torch.randint(0, 255, (3, 512, 512), dtype=torch.uint8) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        result["browser"] = chrome.version
        for name, count in CASES.items():
            path = export_html(Path(folder) / "page.html", images, {f"encoder {k}": Made() for k in range(count)})
            page = chrome.new_page(viewport={"width": 1280, "height": 900})
            page.goto(path.as_uri())
            page.wait_for_selector("canvas")
            load = os.getloadavg()[0]
            times, computed = zip(*measure(page, options.clicks, options.warm), strict=True)
            result["cases"][name] = {
                "median": round(statistics.median(times), 1), "slowest": round(max(times), 1),
                "median of computing": round(statistics.median(computed), 1),
                "all": [round(t, 1) for t in times], "load before": round(load, 2)}
        chrome.close()
    result |= {"hardware": hardware(), **environment()}
    print(json.dumps(result, indent=1))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()

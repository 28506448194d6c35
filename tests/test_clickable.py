"""Pages that are clicked without a kernel and without a server: explorer.html opened from a disk in headless Chromium.

What the page shows is compared with what numpy and the project's geometry say. Screenshots go to the folder that
DENSE_SSL_SCREENSHOTS names, else to a temporary one. Without a browser the tests are skipped.
"""

import base64
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from lab import FLAGS, ROOT, chromium, missing
from PIL import Image

from dense_ssl.evaluation.coherence import RawColours
from dense_ssl.geometry.depth import normalize_depth
from dense_ssl.geometry.reprojection import project_points, to_world
from dense_ssl.models.encoders import build_encoder
from dense_ssl.positives.masks import depth_mask
from dense_ssl.viz.clickable import export_html, scene
from dense_ssl.viz.gallery import Gallery, load_sample
from dense_ssl.viz.pca import pca_maps

needs_browser = pytest.mark.skipif(bool(missing()), reason=missing())
ROWS, COLS = 384, 512


@contextlib.contextmanager
def opened(path: Path, width: int = 1280):
    "A page from the disk; it may load nothing from elsewhere and raise nothing."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = chrome.new_page(viewport={"width": width, "height": 900})
        wrong, asked = [], []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("canvas")
        yield page
        assert not wrong and all(url.startswith(("file:", "data:", "blob:")) for url in asked), (wrong, asked)
        chrome.close()


def click(page, tile: int, row: float, col: float) -> tuple[int, int]:
    "Click into a picture, at a pixel of its image; the pixel that was chosen."
    face = page.locator(".dense-face").nth(tile)
    box = face.bounding_box()
    x, y = (col + 0.5) * box["width"] / COLS, (row + 0.5) * box["height"] / ROWS
    face.click(position={"x": x, "y": y})
    return tuple(point(page)[1:])


def point(page) -> list[int]:
    return json.loads(page.locator(".dense-explorer").get_attribute("data-point"))


def at(page, kind: str, tile: int) -> np.ndarray:
    "Row and column at which a mark stands."
    return np.array(page.locator(".dense-face").nth(tile).locator(kind).get_attribute("data-at").split(), float)


def painted(page, tile: int) -> np.ndarray:
    "The colours of a map, a cell each, (h, w, 4)."
    return np.array(page.locator("canvas").nth(tile).evaluate("""c => {
        const p = c.getContext('2d').getImageData(0, 0, c.width, c.height);
        return Array.from({length: c.height}, (_, i) => Array.from({length: c.width},
            (_, j) => [...p.data.slice(4 * (i * c.width + j), 4 * (i * c.width + j) + 4)])) }"""))


def held(page, label: str) -> list[np.ndarray]:
    "The last features of an encoder that a page holds, of its first two images."
    scene = json.loads(page.locator("#scene").text_content())
    shot = next(e for e in scene["encoders"] if e["name"] == label)["shots"][-1]
    maps = [np.frombuffer(base64.b64decode(m["data"]), np.int8).reshape(*m["size"], -1) for m in shot["maps"][:2]]
    return [m * np.array(shot["scales"], np.float32) for m in maps]


def heat(maps: list[np.ndarray], cell: tuple[int, int]) -> list[np.ndarray]:
    "Cosines with a cell of the first map, from the lowest twentieth to 1, in viridis: (h, w, 3) of 255."
    cosines = [m @ maps[0][cell] for m in maps]
    cosines[0][cell] = 1
    low = np.sort(np.concatenate([c.flatten() for c in cosines]))[sum(c.size for c in cosines) // 20]
    ramp = matplotlib.colormaps["viridis"](np.linspace(0, 1, 256), bytes=True)[:, :3].astype(int)
    return [ramp[np.round(255 * ((c - low) / (1 - low)).clip(0, 1)).astype(int)] for c in cosines]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A page with two pairs of views, an encoder at three moments and a second one; and the gallery that it shows."
    torch.manual_seed(0)
    moments = [build_encoder("resnet18", 16) for _ in range(3)]
    gallery = Gallery(["room:3+", "room:8+"], {"network": moments, "colours": RawColours(16)}, 512)
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    return export_html(path, gallery, None), gallery


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("DENSE_SSL_SCREENSHOTS", tmp_path_factory.mktemp("shots"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@needs_browser
def test_click(made, shots):
    "A click changes every map, each to what numpy says; so do keys, from cell to cell."
    path, gallery = made
    with opened(path) as page:
        assert page.locator(".dense-face").count() == 4
        page.locator("summary").click()
        page.get_by_role("slider", name="strength").press("End")
        before = [painted(page, k) for k in range(4)]
        click(page, 0, 100, 200)
        assert point(page) == [0, 100, 200]
        for tile, (label, image) in enumerate((n, i) for n in gallery.encoders for i in (0, 1)):
            assert (painted(page, tile) != before[tile]).any()
            for maps, most in ((held(page, label), 1), ([gallery.features(i, label).numpy() for i in (0, 1)], 6)):
                gap = np.abs(painted(page, tile)[..., :3] - heat(maps, (100 // 16, 200 // 16))[image]).mean()
                assert gap < most, (label, image, gap)    # of 255; the packed numbers themselves, the full features
        page.locator(".dense-face").nth(2).focus()
        for key, there in (("ArrowRight", [100, 216]), ("ArrowDown", [116, 216]), ("Shift+ArrowLeft", [116, 136])):
            page.keyboard.press(key)
            assert point(page) == [0, *there]
        page.keyboard.press("c")
        assert page.locator(".dense-explorer").get_attribute("data-mode") == "components"
        page.screenshot(path=shots / "page-components.png", full_page=True)
        page.keyboard.press("s")
        page.screenshot(path=shots / "page-wide.png", full_page=True)
        click(page, 3, 50, 60)                            # the other image is asked now
        image, row, col = point(page)
        assert image == 1 and abs(row - 50) < 2 and abs(col - 60) < 2


@needs_browser
def test_true_point(made):
    "The true point stands where the depth and the poses say, and the best match where the full features have it."
    path, gallery = made
    first, second = gallery.samples[:2]
    world = to_world(first.depth, first.K, first.pose)
    with opened(path) as page:
        gaps, found = [], []
        for y0 in range(20, ROWS, 60):
            for x0 in range(25, COLS, 75):
                row, col = click(page, 0, y0, x0)
                (x, y), = project_points(world[:, row, col][None], second.K, second.pose)[0].tolist()
                mark = page.locator(".dense-face").nth(1).locator(".dense-truth")
                inside = -0.5 <= x < COLS - 0.5 and -0.5 <= y < ROWS - 0.5
                if 2 < x < COLS - 3 and 2 < y < ROWS - 3:
                    gaps.append(np.abs(at(page, ".dense-truth", 1) - (y, x)).max())
                elif not inside and not (-3 < x < COLS + 2 and -3 < y < ROWS + 2):
                    assert mark.count() == 0
                maps = [gallery.features(i, "network", -1) for i in (0, 1)]
                likes = maps[1] @ maps[0][row * 24 // ROWS, col * 32 // COLS]
                i, j = np.array(at(page, ".dense-match", 1)) // 16
                found.append(likes.max().item() - likes[int(i), int(j)].item())
        assert len(gaps) > 15 and np.median(gaps) < 0.2 and np.mean(np.array(gaps) < 1) > 0.9, gaps
        assert max(found) < 0.02, found                    # as like as the best, if it is not the same cell
        text = page.locator("figcaption").nth(1).inner_text()
        assert "px from the true point" in text or "true point is" in text


@needs_browser
def test_components(made):
    "Principal components and their foreground are those of `viz.pca`, up to what int8 changes."
    path, gallery = made
    maps = [gallery.features(i, "colours").movedim(-1, 0) for i in (0, 1)]
    with opened(path) as page:
        page.get_by_role("button", name="all as colours").click()
        page.locator("summary").click()
        page.get_by_role("slider", name="strength").press("End")
        wanted = [m.numpy() for m in pca_maps(maps, unit=False)]
        shown = [painted(page, 2 + k)[..., :3] / 255 for k in (0, 1)]
        turned = np.concatenate([(s - w).reshape(-1, 3) for s, w in zip(shown, wanted, strict=True)])
        flips = np.abs(turned).mean(0) > 0.1               # a component may point the other way
        assert all(np.abs(np.where(flips, 1 - s, s) - w).mean() < 0.02 for s, w in zip(shown, wanted, strict=True))
        for foreground in (0.3, -0.3):
            slider = page.get_by_role("slider", name="foreground")
            slider.fill(str(foreground))
            first = np.concatenate([s[..., 0].flatten() for s in shown])
            kept = first >= foreground if foreground > 0 else first < -foreground
            seen = np.concatenate([(painted(page, 2 + k)[..., :3] > 0).any(-1).flatten() for k in (0, 1)])
            assert (seen == kept).mean() > 0.97 and 0.02 < kept.mean() < 0.98


@needs_browser
def test_training(made):
    "The slider over training shows another moment, and both pairs can be shown."
    path, gallery = made
    with opened(path) as page:
        page.locator(".dense-face").first.wait_for()
        last = painted(page, 0)
        page.get_by_role("slider", name="training").press("Home")
        assert (painted(page, 0) != last).any() and "step 0" in page.locator(".dense-bar output").all_inner_texts()
        page.locator(".dense-face").first.focus()
        page.keyboard.press("]"), page.keyboard.press("]")
        assert (painted(page, 0) == last).all()
        page.get_by_role("button", name="pair 2").click()
        assert point(page)[0] == 2 and "room:8" in page.locator("figcaption").first.inner_text()
        page.locator("summary").click()
        page.get_by_label("training's positives").select_option("both")
        assert page.locator(".dense-positives path").count() == 2 * 2 * 3      # two encoders, light on dark


def outlined(page) -> np.ndarray:
    "What a page outlines as training's positives, of the middle thresholds: bool (96, 128)."
    return np.array(page.locator(".dense-positives path").nth(1).evaluate("""path => {
        const parts = [...path.getAttribute('d').matchAll(/M([\\d.]+) ([\\d.]+)v([\\d.]+)/g)];
        const walls = parts.map(m => m.slice(1).map(Number));
        return Array.from({length: 96}, (_, i) => Array.from({length: 128}, (_, j) =>
            walls.filter(([x, y, d]) => x <= j * 4 && y <= i * 4 && i * 4 < y + d).length % 2)) }"""), bool)


@needs_browser
def test_positives(tmp_path):
    """What is outlined as training's positives is what the masks of distance and depth leave, also where the depth of
    the pixel or of its neighbours is unknown."""
    sample = load_sample("room:3")
    sample.depth = sample.depth.clone()
    sample.depth[230:290, 200:240] = float("nan")
    path = export_html(tmp_path / "explorer.html", sample, {"colours": RawColours(16)}, 256)
    depth, (y, x) = normalize_depth(sample.depth), np.mgrid[1.5:384:4, 1.5:512:4]
    with opened(path) as page:
        held = json.loads(page.locator("#scene").text_content())["images"][0]
        page.locator("summary").click()
        page.get_by_label("training's positives").select_option("both")
        for row, col in ((250, 250), (260, 190), (250, 220)):              # beside the hole on both sides, and in it
            row, col = click(page, 0, row, col)
            near = np.hypot(y - row, x - col) / held["bin"] <= held["thresholds"][0][0]
            wanted = depth_mask(depth[row, col].view(1, 1), depth[2::4, 2::4].reshape(1, -1), held["thresholds"][0][1])
            both = near & wanted.view(96, 128).numpy()
            assert (outlined(page) == both).mean() > 0.995 and both.any()
            hole = near & depth[2::4, 2::4].isnan().numpy()
            assert hole.any() and outlined(page)[hole].mean() > 0.97, (row, col)


@needs_browser
def test_focus(made):
    "The keyboard stays where it was when what it stood on is drawn anew."
    path, gallery = made
    with opened(path) as page:
        here = """() => document.activeElement.ariaLabel ||
            document.activeElement.closest('label, button, summary')?.innerText"""
        page.locator("summary").focus()
        page.keyboard.press("Enter")
        for role, name, key in (("button", "all as colours", "Enter"), ("button", "similar places", " "),
                                ("button", "pair 2", "Enter"), ("checkbox", "colours", " "),
                                ("combobox", "left", "ArrowDown")):
            control = page.get_by_role(role, name=name, exact=True)
            control.focus()
            before = page.evaluate(here)
            page.keyboard.press(key)
            assert page.evaluate(here) == before and name in before, (name, before, page.evaluate(here))
        page.locator(".dense-face").first.focus()
        page.keyboard.press("c")
        assert page.evaluate("document.activeElement.className") == "dense-face"


@needs_browser
def test_narrow(made, shots):
    "On a telephone: nothing is wider than the screen, a tap answers, and what can be touched is large enough."
    path, _ = made
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = chrome.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).new_page()
        page.goto(path.as_uri())
        page.locator(".dense-face").nth(2).tap(position={"x": 20, "y": 30})
        assert point(page)[0] == 0 and point(page)[1:] != [192, 256]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert all(b["height"] >= 30 for b in (e.bounding_box() for e in page.get_by_role("button").all()))
        page.screenshot(path=shots / "page-narrow.png", full_page=True)
        chrome.close()


@needs_browser
def test_own(tmp_path):
    "A folder of one's own photographs and a checkpoint of elsewhere become a page by one command, and it answers."
    (tmp_path / "photos").mkdir()
    for k in range(3):
        picture = np.random.default_rng(k).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).resize((512, 384), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{k}.jpg")
    torch.save(build_encoder("resnet18", 16).body.state_dict(), tmp_path / "mine.pth")
    values = {"images": [str(tmp_path / "photos")], "encoders": {"mine": f"resnet18={tmp_path / 'mine.pth'}"}}
    command = [sys.executable, "-m", "papermill", "nbs/10_experiments/14_explore.ipynb", str(tmp_path / "out.ipynb"),
               "--no-progress-bar", "-p", "out", str(tmp_path / "explorer.html"), "-p", "output_stride", "16",
               "-p", "size", "256", "-y", json.dumps(values)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with opened(tmp_path / "explorer.html") as page:
        before = painted(page, 0)
        row, col = click(page, 0, 60, 80)
        assert (painted(page, 0) != before).any() and page.locator(".dense-face").count() == 2
        assert "cosine" in page.locator("figcaption").nth(1).inner_text() and page.locator(".dense-truth").count() == 0


def test_accounted(made):
    "The page is small, and what its packing costs is measured and said in it."
    path, gallery = made
    assert path.stat().st_size < 2_000_000
    for encoder in scene(gallery)["encoders"]:
        mean, worst = encoder["deviation"]
        assert mean < 0.01 and worst < 0.2 and f"{mean:.4f}" in encoder["note"]

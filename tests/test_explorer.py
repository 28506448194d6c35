"""The explorers in JupyterLab in a browser: each opens, a click changes the picture, and what goes wrong is said.

Screenshots go to the folder that DENSE_SSL_SCREENSHOTS names, else to a temporary one. Without a browser all but the
last tests are skipped.
"""

import json
import os
import shutil
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from lab import ROOT, Lab, Shown, browser, missing
from PIL import Image

from dense_ssl.viz.explorer import true_point
from dense_ssl.viz.explorers.widgets import WIDGET_VIEW, strip_widgets
from dense_ssl.viz.gallery import load_sample

needs_browser = pytest.mark.skipif(bool(missing()), reason=missing())
EXPLORE = "10_experiments/14_explore.ipynb"

# Every explorer in a cell of its own, small enough to open at once: name -> (the cell, how many pictures can be
# clicked).
# One more explorer: one more line here.
SETUP = """
import json, time
from pathlib import Path
import torch
from dense_ssl.core import runs_root
from dense_ssl.data.catalog import open_data
from dense_ssl.evaluation.coherence import RawColours
from dense_ssl.viz.explorer import Explorer
from dense_ssl.viz.explorers.labels import LabelExplorer, embedded_labels
from dense_ssl.viz.explorers.runs import RunExplorer
from dense_ssl.viz.explorers.scenes import SceneExplorer
from dense_ssl.viz.explorers.widgets import ClickImage, Latest
from dense_ssl.viz.gallery import load_sample
from dense_ssl.geometry.regions import RegionConfig
from dense_ssl.viz.explorers.regions import RegionExplorer

torch.set_num_threads(1)
def street(height, count, **options):
    data = open_data("street", size=(height, 2 * height), count=count, views=1, **options)
    return data if options else [data[i] for i in range(count)]

pair = [load_sample("room:3+")]
colours = {"colours": RawColours(8), "coarse": RawColours(16)}
"""
RUNS = """
for name, rate in (("slow-0", 0.99), ("fast-1", 0.9)):
    folder = runs_root() / "pretrain" / name
    folder.mkdir(parents=True)
    params = {"method": "pixdepth", "steps": 100, "lr": 1 - rate, "data": {"name": "room"}}
    lines = [json.dumps({"step": i, "loss": rate ** i}) + chr(10) for i in range(50)]
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "metrics.jsonl").write_text("".join(lines))
"""
BOARDS = {
    "similarity": ("Explorer(pair, colours, size=256, offered={})", 4),
    "region": ("RegionExplorer(street(96, 1), config=RegionConfig(count=300))", 1),
    "scene": ("SceneExplorer(size=(96, 192))", 1),
    "label": ("LabelExplorer()", 1),
    "run": (RUNS + "RunExplorer()", 1),
}
TROUBLE = """
from torch import nn

class Flat(nn.Module):
    stride = 8
    def forward(self, x):
        return x.mean((2, 3))

class SlowClicks:
    "A picture whose answer takes long, and says how many there were."
    def __init__(self):
        self.answers, self.answer = 0, Latest(self.work)
        self.click = ClickImage(torch.zeros(3, 96, 128, dtype=torch.uint8), "slow", self.answer, 240, sliders=False)
    def work(self):
        time.sleep(0.4)
        self.answers += 1
        self.click.show(drawing=f"<g data-answers='{self.answers}'/>")

class Torn:
    def __init__(self, images, torn):
        self.images, self.torn = images, torn
    def __len__(self):
        return len(self.images)
    def __getitem__(self, i):
        return load_sample(CORRUPT) if i == self.torn else self.images[i]

proposals = {"kind": "coherent", "count": 150}
bad = {"colours": RawColours(8), "flat": Flat(), "gone": GONE}
"""
# Explorers to which something is wrong: name -> the cell.
TROUBLED = {
    "trouble": "Explorer(pair, dict(bad), size=256, offered={})",
    "slow": "slow = SlowClicks(); slow.click.widget",
    "bad region": "RegionExplorer(Torn(street(48, 3), 1), config=RegionConfig(count=150), width=300)",
    "bad scene": "SceneExplorer(Torn(street(48, 8, proposals=proposals), 5), size=(48, 96), width=400)",
    "bad label": "LabelExplorer(Torn(embedded_labels(4), 2), classes=open_data('room').classes, width=400)",
    "no label": "LabelExplorer(pair, centres=GONE, width=400)",
}


def notebook(*cells: str) -> str:
    "A notebook of these cells, as JSON."
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
    made.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    return nbformat.writes(made)


def picture() -> bytes:
    "A PNG."
    file = BytesIO()
    Image.linear_gradient("L").resize((128, 96)).convert("RGB").save(file, format="png")
    return file.getvalue()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab in a browser, on a copy of the notebooks and on notebooks of explorers."
    root = tmp_path_factory.mktemp("lab")
    folder, shots = root / "nbs", Path(os.environ.get("DENSE_SSL_SCREENSHOTS", root / "screenshots")).resolve()
    (folder / EXPLORE).parent.mkdir(parents=True)
    shutil.copy(ROOT / "nbs" / EXPLORE, folder / EXPLORE)
    (root / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n, then nothing")
    setup = f"CORRUPT, GONE = {str(root / 'corrupt.png')!r}, {str(root / 'gone')!r}\n{SETUP}{TROUBLE}"
    (folder / "boards.ipynb").write_text(notebook(setup, *(cell for cell, _ in BOARDS.values()), *TROUBLED.values()))
    with browser(folder, shots, root / "runs") as lab:
        yield lab
        print("screenshots:", shots)


@pytest.fixture(scope="module")
def boards(lab):
    "Every explorer on one page."
    lab.open("boards.ipynb")
    return {name: lab.board(i + 1) for i, name in enumerate((*BOARDS, *TROUBLED))}


@needs_browser
def test_newcomer(lab: Lab):
    """The notebook for newcomers opens and runs; clicks and keys are answered; a figure and a page are saved."""
    lab.open(EXPLORE)
    cells = nbformat.read(ROOT / "nbs" / EXPLORE, 4).cells
    explorer = lab.board(next(i for i, c in enumerate(cells) if c["id"] == "explorer"))
    assert explorer.faces.count() >= 2 and explorer.cell.locator("[role=alert]").count() == 0, explorer.status()
    before = explorer.cell.locator(".dense-match").first.get_attribute("data-at")
    explorer.click(0, 0.8, 0.75)
    image, row, col = explorer.asked()
    assert image == 0 and abs(row - 0.75 * 384) <= 3 and abs(col - 0.8 * 512) <= 3
    assert explorer.cell.locator(".dense-match").first.get_attribute("data-at") != before
    explorer.faces.nth(0).focus()
    lab.page.keyboard.press("ArrowRight")
    lab.page.keyboard.press("ArrowUp")
    explorer.until(lambda: explorer.asked()[1] < row and explorer.asked()[2] > col, "arrow keys move by a cell")
    # the focus stays, so that one can go on
    assert lab.page.evaluate("document.activeElement.classList.contains('dense-face')")
    explorer.shot("newcomer-similarity")
    explorer.button("all as colours").click()
    explorer.shot("newcomer-components")
    explorer.unfold()
    explorer.button("save this figure").click()
    explorer.says("saved ")
    saved = json.loads(next((lab.folder.parent / "runs" / "explored").glob("*.json")).read_text())
    assert [saved["image"], *saved["point"]] == explorer.asked()      # Python knows where the page was clicked
    explorer.button("save as a page").click()
    explorer.says("explorer.html")
    assert not lab.errors

    kept = lab.saved(EXPLORE)  # as Lab saves it, with live widgets; then as it is committed
    assert any(WIDGET_VIEW in output.get("data", {}) for cell in kept["cells"] for output in cell.get("outputs", ()))
    assert strip_widgets(kept) and len(json.dumps(kept)) < 300_000 and "widget" not in json.dumps(kept["metadata"])
    lab.close_kernels()


@needs_browser
@pytest.mark.parametrize("name", [name for name in BOARDS if name != "similarity"])
def test_click(lab: Lab, boards: dict[str, Shown], name: str):
    "Each explorer opens without an error, and a click changes its picture."
    board = boards[name]
    assert board.faces.count() == BOARDS[name][1] and board.cell.locator("[role=alert]").count() == 0, board.status()
    board.faces.nth(0).scroll_into_view_if_needed()
    before = board.layer()
    for x, y in ((0.3, 0.7), (0.7, 0.4)):
        board.changes(lambda x=x, y=y: board.click(0, x, y))
    board.shot(name)
    assert board.layer() != before and board.cell.locator("[role=alert]").count() == 0, board.status()
    assert board.faces.nth(0).get_attribute("aria-label")
    assert board.faces.nth(0).locator("img").first.get_attribute("alt")
    assert not lab.errors


@needs_browser
def test_similarity(lab: Lab, boards: dict[str, Shown]):
    """The explorer of features in JupyterLab is the page without a kernel: a click changes the maps, the true point
    stands where Python has it, and Python knows the pixel."""
    board, pair = boards["similarity"], load_sample("room:3+")
    assert board.faces.count() == 4 and board.cell.locator("[role=alert]").count() == 0, board.status()
    board.faces.nth(0).scroll_into_view_if_needed()
    for x, y in ((0.3, 0.3), (0.62, 0.55)):
        before = board.maps()
        board.click(0, x, y)
        board.until(lambda old=before: all(a != b for a, b in zip(old, board.maps(), strict=True)), "a map stands")
        _, row, col = board.asked()
        true = true_point(pair, pair.second, (row, col))
        shown = board.cell.locator(".dense-truth").first.get_attribute("data-at").split()
        assert abs(float(shown[0]) - true[0]) < 2 and abs(float(shown[1]) - true[1]) < 2
    board.shot("similarity")
    assert not lab.errors


@needs_browser
def test_region_controls(lab: Lab, boards: dict[str, Shown]):
    """A weight, the round and what is shown are changed by keys; each time another picture comes, the region's facts
    with it."""
    board = boards["region"]
    board.faces.nth(0).scroll_into_view_if_needed()
    board.click(0, 0.6, 0.8)
    board.changes(lambda: board.handle("bias b").press("PageUp"))
    board.says("grouped in ")
    for name, key in (("threshold Tₑ", "End"), ("round", "Home"), ("strength", "ArrowLeft")):
        board.changes(lambda name=name, key=key: board.handle(name).press(key))
    for show in ("boundaries", "superpixels", "depth", "regions"):
        board.changes(lambda show=show: board.button(show).click())
    assert "weakest boundary" in board.cell.locator("table[aria-label='the chosen region']").inner_text()
    board.changes(lambda: board.handle("round").press("End"))
    board.changes(lambda: board.button("first values").click())
    board.faces.nth(0).hover(position={"x": 200, "y": 250})
    board.until(
        lambda: board.cell.locator(".dense-read").first.inner_text().startswith("depth "), "no depth under the pointer"
    )
    board.shot("region-controls")
    assert not lab.errors


@needs_browser
def test_scene_counterparts(lab: Lab, boards: dict[str, Shown]):
    "As many places are marked as the table says, and another seed brings other scenes."
    board = boards["scene"]
    board.faces.nth(0).scroll_into_view_if_needed()
    table = board.cell.locator("table[aria-label='the chosen pixel']")
    often = ("no times", "once", *(f"{count} times" for count in range(2, 100)))
    for x, y in ((0.4, 0.25), (0.1, 0.6)):
        board.changes(lambda x=x, y=y: board.click(0, x, y))
        board.until(
            lambda: f"{often[board.cell.locator('.dense-counterpart').count() - 1]} in " in table.inner_text(),
            "marks and table disagree",
        )
    board.changes(lambda: board.button("cut from").click())
    picture = board.faces.nth(0).locator("img").first.get_attribute("src")
    board.field("seed").fill("7")
    board.field("seed").press("Enter")
    board.until(
        lambda: board.faces.nth(0).locator("img").first.get_attribute("src") != picture, "another seed, the same scenes"
    )
    board.until(lambda: "scene 8" in board.layer() and "<img" in board.layer(), "no layer over the new scenes")
    board.shot("scene-cut-from")
    assert not lab.errors


@needs_browser
def test_label_list(lab: Lab, boards: dict[str, Shown]):
    """A label chosen in the list is lit, and set off in the table with its best class; all labels and the truth can be
    laid over."""
    board = boards["label"]
    board.faces.nth(0).scroll_into_view_if_needed()
    board.changes(lambda: board.field("label").select_option(index=3))
    label = board.field("label").evaluate("e => e.selectedOptions[0].textContent").split(":")[0]
    row = board.cell.locator("tr[aria-current='true']")
    board.until(lambda: row.locator("th").inner_text().split()[-1] == label, "the table sets off another label")
    assert row.locator("td").count() == 5 and "PmIoU" in board.cell.locator(".jp-Cell-outputArea").inner_text()
    for show in ("all labels", "truth", "chosen"):
        board.changes(lambda show=show: board.button(show).click())
    board.shot("label-list")
    assert not lab.errors


@needs_browser
def test_run_alive(lab: Lab, boards: dict[str, Shown]):
    """Lines that another process writes are shown without a touch; a broken and an unfinished one are said, and it goes
    on."""
    board, folder = boards["run"], lab.folder.parent / "runs" / "pretrain"
    board.faces.nth(0).scroll_into_view_if_needed()
    table = board.cell.locator("[aria-label='the chosen runs'] table")
    assert "slow-0" in table.inner_text() and "lr" in table.inner_text() and "method" not in table.inner_text()
    board.changes(lambda: board.click(0, 0.5, 0.5))
    assert board.cell.locator(".dense-step").count() == 1
    with open(folder / "fast-1" / "metrics.jsonl", "a") as file:
        file.write(
            "nonsense\n"
            + "".join(json.dumps({"step": i, "loss": 0.9}) + "\n" for i in range(50, 80))
            + '{"step": 80, "lo'
        )
    before = board.layer()
    board.until(lambda: board.layer() != before and "80 of 100" in table.inner_text(), "what was written is not shown")
    board.says("line 51 is left out")
    (folder / "late").mkdir()
    (folder / "late" / "params.json").write_text(json.dumps({"method": "cpcdr", "steps": 5}))
    board.until(
        lambda: "late" in table.inner_text() and "running" in table.inner_text() and "method" in table.inner_text(),
        "a new run is not shown",
    )
    (folder / "late" / "done.json").write_text("{}")
    board.until(lambda: "done" in table.inner_text(), "a finished run is not said to be")
    board.changes(lambda: board.handle("smooth").press("PageUp"))
    board.shot("run-alive")
    assert not lab.errors


@needs_browser
def test_trouble(lab: Lab, boards: dict[str, Shown]):
    """An encoder without a feature map, a missing checkpoint, a corrupt image, no number; and clicks that come while an
    answer is computed."""
    board, slow = boards["trouble"], boards["slow"]
    tiles = board.cell.locator(".dense-problem")
    board.until(lambda: tiles.count() == 4, "no tile says what is wrong")
    said = " ".join(tiles.all_inner_texts())
    assert "flat: encoder gives (1, 3)" in said and "gone" in said
    board.says("flat: encoder gives (1, 3)"), board.says("gone")
    assert board.faces.count() == 6 and board.cell.locator(".dense-problem").count() == 4
    before = board.maps()[0]
    board.click(0, 0.2, 0.2)  # the encoder that can, answers
    board.until(lambda: board.maps()[0] != before, "the encoder that can does not answer")
    board.unfold()
    for text, words in (
        (f"{lab.folder.parent}/corrupt.png", "corrupt.png: is not a whole image"),
        ("room:many", "whole number"),
    ):
        board.field("images").fill(text)
        board.button("show too").click()
        board.says(words)
    board.shot("trouble")
    board.field("images").fill("borehole:3")
    board.button("show too").click()
    board.until(lambda: board.button("borehole:3").count() == 1, "the new image is not offered")

    slow.faces.first.evaluate("""async face => {
        for (let k = 1; k < 10; k++) {
            const box = face.getBoundingClientRect();
            const place = {clientX: box.left + box.width * k / 10, clientY: box.top + box.height * 0.52};
            face.dispatchEvent(new MouseEvent('click', {bubbles: true, ...place}));
            await new Promise(done => setTimeout(done, 20));
        } }""")
    slow.until(lambda: slow.point() == [49, 115], "the last click has no answer")
    answers = int(slow.cell.locator("[data-answers]").get_attribute("data-answers"))
    assert 1 <= answers <= 8, answers  # the ones between were passed over
    assert not lab.errors


@needs_browser
@pytest.mark.parametrize(
    "name, control, value, good", [("bad region", "image", "1", "2"), ("bad scene", "images", "1", "0")]
)
def test_bad_images(lab: Lab, boards: dict[str, Shown], name: str, control: str, value: str, good: str):
    "A corrupt image is named; what was shown before can still be clicked, and another image comes."
    board = boards[name]
    board.faces.nth(0).scroll_into_view_if_needed()
    board.changes(lambda: board.click(0, 0.3, 0.3))
    board.field(control).fill(value)
    board.field(control).press("Enter")
    board.says("corrupt.png: is not a whole image")
    board.shot(name.replace(" ", "-"))
    board.changes(lambda: board.click(0, 0.6, 0.8))
    board.field(control).fill(good)
    board.field(control).press("Enter")
    board.until(lambda: not board.cell.locator("[role=alert]").count(), "the error is still shown")
    board.changes(lambda: board.click(0, 0.4, 0.3))
    assert not lab.errors


@needs_browser
def test_bad_labels(lab: Lab, boards: dict[str, Shown]):
    """A corrupt image is left out, and said to be; without the centres' file there is nothing but the sentence that
    names it."""
    board, none = boards["bad label"], boards["no label"]
    board.says("1 of 4 images are left out"), none.says("gone")
    board.shot("bad-label"), none.shot("no-label")
    board.changes(lambda: board.click(0, 0.15, 0.4))
    none.click(0, 0.5, 0.5)
    none.button("all labels").click()
    none.until(lambda: bool(none.status()), "nothing is said")
    assert none.cell.locator("table").count() == 0 and not lab.errors


@needs_browser
def test_sources(lab: Lab, boards: dict[str, Shown]):
    """An upload, a corrupt one, a seed of another world; a figure of every explorer with its JSON; fewer encoders."""
    board = boards["similarity"]
    board.faces.nth(0).scroll_into_view_if_needed()
    board.unfold()
    board.upload("corrupt.png", b"nothing")
    board.says("corrupt.png: is not a whole image")
    board.upload("mine.png", picture())
    board.until(lambda: board.button("mine.png").count() == 1, "the upload is not offered")
    board.button("mine.png").click()
    board.until(lambda: board.faces.count() == 2 and board.asked()[0] == 2, "the upload is not shown")
    board.field("images").fill("street:4")
    board.button("show instead").click()
    board.until(lambda: "street:4" in board.cell.locator("figcaption").first.inner_text(), "no street")
    board.field("encoders").select_option("coarse")
    board.until(lambda: board.faces.count() == 1, "one encoder is chosen, two are shown")
    board.shot("sources")
    for name, board in boards.items():
        if name in BOARDS:
            board.field("file").fill(f"by hand {name}")
            board.button("save this figure").click()
            board.says("saved ")
            about = lab.folder.parent / "runs" / "explored" / f"by hand {name}.json"
            assert json.loads(about.read_text()) and about.with_suffix(".png").stat().st_size > 1000
    assert not lab.errors


@needs_browser
def test_accessible(lab: Lab, boards: dict[str, Shown]):
    """Whatever takes the focus has a name, also for a screen reader; the keyboard reaches it, and it shows that it has
    the focus."""
    for name in BOARDS:
        cell = boards[name].cell
        nameless = cell.locator(".dense-board").first.evaluate("""board => [...board.querySelectorAll(
            'button, select, input:not([type=file]), [role=slider], [contenteditable=true], [tabindex="0"]')].filter(
            e => e.offsetParent && !(e.ariaLabel || e.textContent.trim() && !e.matches('.widget-readout, select')
                                     || e.labels?.[0]?.textContent.trim()
                                     || e.closest('label')?.textContent.trim())).map(e => e.outerHTML)""")
        assert not nameless, (name, nameless)
        slider = cell.get_by_role("slider").first
        slider.focus()
        # by the keyboard, so that the ring is wanted
        lab.page.keyboard.press("Shift+Tab"), lab.page.keyboard.press("Tab")
        focused = lab.page.evaluate("""() => {
            const e = document.activeElement;
            return [e.closest('.dense-board') != null, getComputedStyle(e).outlineStyle] }""")
        assert focused == [True, "solid"], name


@needs_browser
def test_reopened(lab: Lab, boards: dict[str, Shown]):
    "The notebook closed and opened again, while its kernel lives: the explorers are there, and answer."
    lab.saved("boards.ipynb")
    where = boards["similarity"].asked()
    lab.open("boards.ipynb", run=False, reset=False)
    board = lab.board(1)
    board.until(lambda: board.faces.count() == 1, "the explorer is not shown again")
    assert board.asked() == where
    board.click(0, 0.52, 0.52)
    board.until(lambda: board.asked() != where, "a click is not answered")
    assert not lab.errors
    lab.close_kernels()


def committed() -> list[Path]:
    "All notebooks of the project."
    return sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.mark.parametrize("path", committed(), ids=lambda p: p.stem)
def test_no_widget_state(path: Path):
    "No stored widget state and no reference to a live widget; a notebook with explorers stays small."
    content = json.loads(path.read_text())
    said = f"{path.relative_to(ROOT)} holds widget state; dense_ssl.viz.explorers.widgets.strip_widgets removes it"
    assert not strip_widgets(content), said
    if "viz.explorer" in path.read_text():
        assert path.stat().st_size < 300_000

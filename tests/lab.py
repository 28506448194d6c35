"""JupyterLab in headless Chromium, driven by Playwright: open a notebook, run it, click into its explorers, look."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from dense_ssl.processes import die_with_parent

BIN, ROOT = Path(sys.executable).parent, Path(__file__).parents[1]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
QUIET = {"checkForUpdates": False, "doNotDisturbMode": True, "fetchNews": "false"}
SETTINGS = {
    "apputils-extension/notification": QUIET,
    # every cell is in the page, not only those in sight
    "notebook-extension/tracker": {"windowingMode": "none"},
}


def missing() -> str:
    "Why there is no browser, or nothing."
    if not chromium():
        return "chromium is not there; tests/browser.sh installs it (Debian), or DENSE_SSL_CHROMIUM names it"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not there; tests/browser.sh installs it"
    return ""


def chromium() -> str | None:
    "Path of the browser: `DENSE_SSL_CHROMIUM`, else what the system has."
    return os.environ.get("DENSE_SSL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def jupyter(folder: Path, runs: Path) -> Iterator[str]:
    "A JupyterLab whose files are those of `folder`; its address. Nothing of the user's settings is read or written."
    home = folder.parent / "jupyter"
    for name, value in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    env = {
        **os.environ,
        **{name: str(home / part) for name, part in folders.items()},
        "DENSE_SSL_ROOT": str(ROOT),
        "DENSE_SSL_RUNS": str(runs),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [
        BIN / "jupyter-lab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.token=",
        f"--ServerApp.root_dir={folder}",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--LabApp.expose_app_in_browser=True",
    ]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            command, env=env, stdout=log, stderr=log, cwd=folder, start_new_session=True, preexec_fn=die_with_parent
        )
    try:
        until, address = time.monotonic() + 180, f"http://127.0.0.1:{port}"
        while True:
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                if time.monotonic() > until or server.poll() is not None:
                    raise RuntimeError(f"JupyterLab did not start: {(home / 'log').read_text()[-2000:]}") from None
                time.sleep(0.1)
        yield address
    finally:
        server.send_signal(signal.SIGINT), server.send_signal(signal.SIGTERM)  # it ends its kernels
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


class Lab:
    """One browser page on one JupyterLab. `page`: Playwright's; `shots`: where screenshots go; `errors`: what the
    page's scripts raised."""

    def __init__(self, page, address: str, folder: Path, shots: Path) -> None:
        self.page, self.address, self.folder, self.shots, self.errors = page, address, folder, shots, []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, notebook: str, run: bool = True, reset: bool = True, seconds: float = 240) -> None:
        "Open a notebook (a path under the served folder), in a fresh workspace with `reset`, and run all its cells."
        self.page.goto(f"{self.address}/lab/tree/{notebook}{'?reset' if reset else ''}", timeout=180_000)
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=1000 * seconds)
        self.page.wait_for_function(
            """() => {
            const kernel = window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel;
            const idle = kernel && kernel.connectionStatus == 'connected' && kernel.status == 'idle';
            return idle && kernel.hasPendingInput === false }""",
            timeout=1000 * seconds,
        )
        if run:
            self.run(seconds)
        failed = self.page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']")
        if failed.count():
            raise AssertionError(f"{notebook}: {failed.first.inner_text()[-1500:]}")

    def run(self, seconds: float = 240) -> None:
        "Run all cells, until the kernel has nothing to do."
        self.command("notebook:run-all-cells")
        self.page.wait_for_function(
            """() => {
            const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(p => p.textContent);
            const kernel = document.querySelector('.jp-Notebook-ExecutionIndicator').dataset.status;
            const waiting = kernel != 'idle' || prompts.some(p => p.includes('*'));
            return !waiting && prompts.some(p => /[0-9]/.test(p)) }""",
            timeout=1000 * seconds,
        )

    def command(self, name: str) -> None:
        "One of JupyterLab's commands, such as docmanager:save."
        self.page.evaluate(f"void window.jupyterapp.commands.execute('{name}')")

    def saved(self, notebook: str, seconds: float = 240) -> dict:
        "Save the open notebook; what is then in its file."
        path = self.folder / notebook
        before = path.stat().st_mtime_ns
        self.command("docmanager:save")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if path.stat().st_mtime_ns != before:
                with contextlib.suppress(json.JSONDecodeError):  # it may be half written
                    return json.loads(path.read_text())
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{notebook} was not saved")

    def close_kernels(self) -> None:
        "Shut down all kernels."
        self.page.evaluate("async () => { await window.jupyterapp.serviceManager.sessions.shutdownAll() }")

    def board(self, cell: int) -> "Shown":
        "The explorer in the output of a cell, counted from 0."
        return Shown(self, self.page.locator(".jp-Notebook .jp-Cell").nth(cell))

    def shot(self, name: str, what=None) -> Path:
        "A screenshot of an element, or of what is in sight."
        path = self.shots / f"{name}.png"
        (what or self.page).screenshot(path=path)
        return path


class Shown:
    """An explorer on the page: its clickable pictures, the layers over them, its status line and controls. `cell`: its
    cell, a Playwright locator."""

    def __init__(self, lab: Lab, cell) -> None:
        self.lab, self.page, self.cell = lab, lab.page, cell
        self.faces, self.layers = cell.locator(".dense-face"), cell.locator(".dense-over .dense-stack")

    def layer(self, number: int = 0) -> str:
        "What lies over picture `number`, as HTML: it changes with every answer."
        return self.layers.nth(number).evaluate("e => e.outerHTML")

    def point(self, number: int = 0) -> list[int]:
        "Row and column of the chosen pixel of picture `number`."
        return json.loads(self.layers.nth(number).get_attribute("data-point"))[:2]

    def asked(self) -> list[int]:
        "Image, row and column that the explorer of features is asked about."
        return json.loads(self.cell.locator(".dense-explorer").get_attribute("data-point"))

    def maps(self) -> list[str]:
        "Every map of the explorer of features, as a picture."
        return [canvas.evaluate("c => c.toDataURL()") for canvas in self.cell.locator("canvas").all()]

    def unfold(self) -> None:
        "Open what folds away below the explorer of features."
        self.cell.locator(".jupyter-widget-Collapse-header").click()

    def until(self, ready: Callable[[], bool], what: str, seconds: float = 240) -> None:
        "Wait until `ready()`, else fail with `what`."
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise AssertionError(f"after {seconds} s: {what}; the status line says {self.status()!r}")
            self.page.wait_for_timeout(20)

    def changes(self, act: Callable[[], None], number: int = 0, seconds: float = 240) -> str:
        "Do `act` and wait until the layer over picture `number` is another one; the new one."
        before = self.layer(number)
        act()
        self.until(lambda: self.layer(number) != before, f"the layer over picture {number} did not change", seconds)
        return self.layer(number)

    def click(self, number: int = 0, x: float = 0.5, y: float = 0.5) -> None:
        "Click picture `number` at a relative position."
        while (box := self.faces.nth(number).bounding_box()) is None:  # it is being replaced
            self.page.wait_for_timeout(20)
        self.faces.nth(number).click(position={"x": x * box["width"], "y": y * box["height"]})

    def status(self) -> str:
        "What the status line says."
        return self.cell.locator(".dense-status").last.inner_text()

    def says(self, words: str, seconds: float = 240) -> None:
        "Wait until the status line contains `words`."
        self.until(lambda: words in self.status(), f"the status line does not say {words!r}", seconds)

    def field(self, name: str):
        "The input of the control described as `name` (a text, a list, or the number beside a slider)."
        row = self.cell.locator(".jupyter-widgets").filter(has=self.page.locator(f"label:text-is('{name}')")).last
        return row.locator("select, input, .widget-readout").last

    def handle(self, name: str):
        "The handle of the slider described as `name`, to be moved with arrow keys."
        return (
            self.cell.locator(".widget-slider")
            .filter(has=self.page.locator(f"label:text-is('{name}')"))
            .locator(".noUi-handle")
            .first
        )

    def button(self, name: str):
        "The button with this text."
        return self.cell.locator("button", has_text=name).first

    def upload(self, name: str, content: bytes) -> None:
        "Upload a file of this name and content."
        with self.page.expect_file_chooser() as chooser:
            self.button("upload").click()
        chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": content})

    def shot(self, name: str) -> Path:
        "A screenshot of the output."
        return self.lab.shot(name, self.cell.locator(".jp-Cell-outputArea"))


@contextlib.contextmanager
def browser(folder: Path, shots: Path, runs: Path) -> Iterator[Lab]:
    "A `Lab` on the files of `folder`; screenshots go to `shots`."
    from playwright.sync_api import sync_playwright

    shots.mkdir(parents=True, exist_ok=True)
    with jupyter(folder, runs) as address, sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = chrome.new_page(viewport={"width": 1500, "height": 1200})
        page.set_default_timeout(90_000)
        yield Lab(page, address, folder, shots)
        chrome.close()

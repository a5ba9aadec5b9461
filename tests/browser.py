"""Open every notebook in JupyterLab in a real browser, run all its cells, move a slider where there is one.

    python tests/browser.py [NN ...] [--screenshots FOLDER]

Needs the extras course and browser, and a Chromium of the system (Debian: apt install chromium). Runs at the smoke
budget, on a copy of the notebooks, with settings of its own.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Error, Locator, Page, sync_playwright

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS = 60
RUN_SECONDS = 300  # for all cells of a notebook
MOVE_SECONDS = 15

SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # else cells outside the window are not in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}

# Every code cell that is not empty has its number, and none is running or waiting
FINISHED = r"""() => [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')].every(cell =>
    !cell.querySelector('.cm-content').innerText.trim()
    || /\[\d+\]/.test(cell.querySelector('.jp-InputPrompt').innerText))"""
FAILURES = '.jp-Notebook [data-mime-type="application/vnd.jupyter.stderr"]'  # tracebacks too
PIXELS = """async image => [...new Uint8Array(await (await fetch(image.src)).arrayBuffer())].join()"""


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[tuple[str, str]]:
    """Run JupyterLab on a folder; gives its address and token."""
    for name, value in SETTINGS.items():
        path = folder / ".settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    own = {"JUPYTERLAB_SETTINGS_DIR": folder / ".settings", "JUPYTERLAB_WORKSPACES_DIR": folder / ".workspaces"}
    own |= {
        name: folder / f".{name.lower()}"
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    own |= {"MINIDALLE_BUDGET": "smoke", "MINIDALLE_MODELS": folder / "my_models"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    if os.name == "posix" and os.geteuid() == 0:
        command.append("--allow-root")
    with (folder / ".server.log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | {k: str(v) for k, v in own.items()}, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, server, folder / ".server.log")
            yield address, token
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        time.sleep(0.3)
    raise SystemExit(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def run_all(page: Page) -> None:
    """Choose "Run All Cells" from the menu and wait for the last one.

    Raises: AssertionError: when a cell fails or takes too long.
    """
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    deadline, failures = time.monotonic() + RUN_SECONDS, page.locator(FAILURES)
    while not page.evaluate(FINISHED) and not failures.count():
        assert time.monotonic() < deadline, f"its cells took more than {RUN_SECONDS} s"
        time.sleep(0.5)
    assert not failures.count(), f"a cell failed:\n{failures.first.inner_text()[-2000:]}"


def move_slider(page: Page, handle: Locator) -> None:
    """Move a slider by a key and wait for another picture beside it.

    Raises: AssertionError: when the picture stays the same.
    """
    image = handle.locator("xpath=ancestor::*[contains(@class, 'jp-OutputArea-output')]").last.locator("img").first
    handle.scroll_into_view_if_needed()
    before = image.evaluate(PIXELS)
    handle.focus()
    deadline = time.monotonic() + MOVE_SECONDS
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
        until = min(deadline, time.monotonic() + MOVE_SECONDS / 5)
        while time.monotonic() < until:
            if image.evaluate(PIXELS) != before:
                return
            time.sleep(0.1)
    raise AssertionError("a slider was moved and the picture beside it stayed the same")


def visit(page: Page, address: str, token: str, name: str) -> int:
    """Open a notebook, run it and move its sliders; gives how many there are."""
    page.goto(f"{address}/lab/tree/{name}?reset&token={token}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=1000 * START_SECONDS)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=1000 * START_SECONDS)
    run_all(page)
    handles = page.locator(".jp-Notebook .widget-slider .noUi-handle")
    for i in range(handles.count()):
        move_slider(page, handles.nth(i))
    return handles.count()


def clear(path: Path, target: Path) -> None:
    """Copy a notebook without its outputs, so that what is seen is new."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    target.write_text(json.dumps(notebook), encoding="utf-8")


def shut_down_kernels(address: str, token: str) -> None:
    """End what the last notebook left running."""
    header = {"Authorization": f"token {token}"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/api/sessions", headers=header)) as answer:
        sessions = json.load(answer)
    for session in sessions:
        url = f"{address}/api/sessions/{session['id']}"
        urllib.request.urlopen(urllib.request.Request(url, headers=header, method="DELETE")).close()


def main() -> int:
    """Visit all notebooks, or those whose numbers are named; 0 when all did well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", metavar="NN", help="notebooks to open, all when none is named")
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of each page")
    args = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        print(
            f"No browser was found ({', '.join(BROWSERS)}): install one (Debian: apt install chromium).",
            file=sys.stderr,
        )
        return 1
    paths = [p for p in sorted(NOTEBOOKS.glob("*.ipynb")) if not args.numbers or p.name[:2] in args.numbers]
    failed = []
    with tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder)) as (address, token), sync_playwright() as p:
        sandbox = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
        browser = p.chromium.launch(executable_path=browser_path, args=sandbox)
        for path in paths:
            clear(path, Path(folder) / path.name)
            page, started = browser.new_page(viewport={"width": 1200, "height": 900}), time.monotonic()
            try:
                count = visit(page, address, token, path.name)
                print(f"{path.name}: ran in {time.monotonic() - started:.0f} s, {count} sliders moved", flush=True)
            except (AssertionError, Error) as error:
                failed.append(path.name)
                print(f"{path.name}: {error}", file=sys.stderr, flush=True)
            if args.screenshots:
                args.screenshots.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=args.screenshots / f"{path.stem}.png", full_page=True)
            page.close()
            shut_down_kernels(address, token)
        browser.close()
    print(f"{len(paths) - len(failed)} of {len(paths)} notebooks did well in the browser")
    return int(bool(failed) or not paths)


if __name__ == "__main__":
    sys.exit(main())

"""Open every notebook in JupyterLab in a real browser, run all its cells, use its sliders, menus and prompt fields.

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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Error, Locator, Page, sync_playwright

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS = 120  # for the server, and for a notebook and its kernel
RUN_SECONDS = 300  # for all cells of a notebook

SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # else cells outside the window are not in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}

# The kernel as JupyterLab sees it, and the code cells that are there. The circle beside the kernel's name does not do:
# it says "idle" until it hears of a kernel, and cells run without one are passed over in silence.
STATE = """path => {
    const panel = [...(window.jupyterapp?.shell.widgets('main') ?? [])].find(widget => widget.context?.path === path);
    const kernel = panel?.sessionContext.session?.kernel;
    const state = kernel?.connectionStatus === 'connected' ? kernel.status : kernel?.connectionStatus ?? 'missing';
    return [state, document.querySelectorAll('.jp-Notebook .jp-CodeCell').length];
}"""
# Every code cell that is not empty has its number when it is done; [*] is running or waiting
UNFINISHED = r"""() => [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')].map((cell, i) => ({
    number: i + 1,
    line: cell.querySelector('.cm-content').innerText.trim().split('\n')[0],
    prompt: cell.querySelector('.jp-InputPrompt').innerText.trim() || '[ ]',
})).filter(cell => cell.line && !/\[\d+\]/.test(cell.prompt))"""
DIALOGS = ".jp-Dialog .jp-Dialog-content"  # of a kernel that died, say
FAILURES = '.jp-Notebook [data-mime-type="application/vnd.jupyter.stderr"]'  # tracebacks too
CONTROLS = {  # what changes the picture beside it
    "slider": ".widget-slider .noUi-handle",
    "menu": ".widget-dropdown select",
    "prompt": ".widget-text ~ button",
}
TRY_SECONDS = {"slider": 3, "menu": 3, "prompt": 60}  # a prompt is drawn by the networks
KEYS = ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft")
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
    command.append("--LabApp.expose_app_in_browser=True")  # for STATE
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


def wait_for_kernel(page: Page, name: str, cells: int) -> None:
    """Wait until the notebook shows all its code cells and its kernel has nothing to do.

    Raises: AssertionError: when that takes too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while (found := page.evaluate(STATE, name)) != ["idle", cells]:
        state = f"its kernel is {found[0]}, {found[1]} of {cells} code cells are shown"
        assert time.monotonic() < deadline, f"not ready after {START_SECONDS} s: {state}"
        time.sleep(0.2)


def run_all(page: Page, name: str) -> None:
    """Choose "Run All Cells" from the menu and wait for the last one.

    Raises: AssertionError: when a cell fails or takes too long, or JupyterLab asks something.
    """
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    deadline, failures, dialogs = time.monotonic() + RUN_SECONDS, page.locator(FAILURES), page.locator(DIALOGS)
    while (left := page.evaluate(UNFINISHED)) and not failures.count():
        assert not dialogs.count(), f"JupyterLab says: {' '.join(dialogs.first.inner_text().split())}"
        if time.monotonic() > deadline:
            state, cells = page.evaluate(STATE, name)
            raise AssertionError(
                f"its cells took more than {RUN_SECONDS} s: {len(left)} of {cells} have no number yet, the kernel is "
                f"{state}; the first is code cell {left[0]['number']}, {left[0]['prompt']}: {left[0]['line']}"
            )
        time.sleep(0.5)
    assert not failures.count(), f"a cell failed:\n{failures.first.inner_text()[-2000:]}"


def use(page: Page, kind: str, control: Locator) -> None:
    """Use a slider, menu or button until the picture beside it is another.

    Raises: AssertionError: when the picture stays the same.
    """
    image = control.locator("xpath=ancestor::*[contains(@class, 'jp-OutputArea-output')]").last.locator("img").first
    control.scroll_into_view_if_needed()
    before = image.evaluate(PIXELS)
    for number in range(1 if kind == "prompt" else len(KEYS)):
        if kind == "slider":
            control.press(KEYS[number])
        elif kind == "menu":
            control.select_option(index=(number + 1) % control.locator("option").count())
        else:
            control.click()
        until = time.monotonic() + TRY_SECONDS[kind]
        while time.monotonic() < until:
            if image.evaluate(PIXELS) != before:
                return
            time.sleep(0.1)
    raise AssertionError(f"a {kind} was used and the picture beside it stayed the same")


def visit(page: Page, address: str, token: str, path: Path) -> Counter:
    """Open a notebook, run it and use its widgets; gives how many of each kind there are."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    page.goto(f"{address}/lab/tree/{path.name}?reset&token={token}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=1000 * START_SECONDS)
    wait_for_kernel(page, path.name, sum(cell["cell_type"] == "code" for cell in notebook["cells"]))
    run_all(page, path.name)
    used = Counter()
    for kind, selector in CONTROLS.items():
        for control in page.locator(f".jp-Notebook {selector}").all():
            use(page, kind, control)
            used[kind] += 1
    return used


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
                used = visit(page, address, token, Path(folder) / path.name)
                widgets = ", ".join(f"{count} x {kind}" for kind, count in used.items()) or "no widgets"
                print(f"{path.name}: {time.monotonic() - started:.0f} s, {widgets}", flush=True)
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

"""Open a student copy in JupyterLab in a real browser, type an answer, and see its check turn to passed.

    python tests/browser_classroom.py [--screenshot FILE]

Needs what tests/browser.py needs.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from browser import BROWSERS, NOTEBOOKS, START_SECONDS, STATE, jupyterlab
from playwright.sync_api import Locator, Page, sync_playwright

from minidalle.course.classroom.lesson import read_lesson
from minidalle.course.classroom.release import release

LESSON = "03_forward_diffusion"
HEAD = "def between(alphas_cumprod, s, t):"
WRONG = f"{HEAD} return alphas_cumprod[t] / alphas_cumprod[s], 0"
RIGHT = f"{HEAD} a = alphas_cumprod[t] / alphas_cumprod[s]; return a.sqrt(), 1 - a"
STEPS = (  # what is typed, and what the check says then
    (None, "Your answer goes here."),
    (WRONG, "The factor multiplies x, not its variance: take a root."),
    (RIGHT, "Passed: 03.1."),
)
SECONDS = 180


def idle(page: Page, name: str) -> None:
    """Wait until the kernel has nothing to do."""
    deadline = time.monotonic() + START_SECONDS
    while page.evaluate(STATE, name)[0] != "idle":
        assert time.monotonic() < deadline, f"the kernel is {page.evaluate(STATE, name)[0]}"
        time.sleep(0.3)


def says(cell: Locator, words: str) -> None:
    """Wait until a cell's output says something.

    Raises: AssertionError: when it says something else for too long.
    """
    deadline = time.monotonic() + SECONDS
    said = ""
    while time.monotonic() < deadline:
        said = cell.locator(".jp-OutputArea").first.inner_text()
        if words in said:
            return
        time.sleep(0.5)
    raise AssertionError(f'the check should say "{words}" and says: {said[-500:]}')


def solve(page: Page, name: str) -> None:
    """Run the copy, then answer its first exercise by typing."""
    answer = page.locator(".jp-Notebook .jp-CodeCell", has_text=HEAD).first
    check = page.locator(".jp-Notebook .jp-CodeCell", has_text="for s, t in ((99, 100), (100, 500), (0, 900)):").first
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for typed, words in STEPS:
        if typed:
            answer.locator(".cm-content").click()
            page.keyboard.press("Control+A")
            page.keyboard.type(typed)
            page.keyboard.press("Shift+Enter")
            page.keyboard.press("Shift+Enter")
        says(check, words)
        idle(page, name)
        print(f"the check says: {words}", flush=True)


def main() -> int:
    """Release a lesson, and solve an exercise of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screenshot", type=Path, help="file for a picture of the solved exercise")
    args = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        raise SystemExit(f"No browser was found ({', '.join(BROWSERS)}): install one (Debian: apt install chromium).")
    with tempfile.TemporaryDirectory() as folder:
        handed = release([read_lesson(NOTEBOOKS / f"{LESSON}.ipynb")], Path(folder, "class")) / LESSON
        with jupyterlab(handed) as (address, token), sync_playwright() as p:
            root = os.name == "posix" and os.geteuid() == 0
            browser = p.chromium.launch(executable_path=browser_path, args=["--no-sandbox"] if root else [])
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.goto(f"{address}/lab/tree/{LESSON}.ipynb?reset&token={token}")
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=1000 * START_SECONDS)
            idle(page, f"{LESSON}.ipynb")
            try:
                solve(page, f"{LESSON}.ipynb")
            finally:
                if args.screenshot:
                    page.screenshot(path=args.screenshot)
                browser.close()
    print("An exercise was solved by typing.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

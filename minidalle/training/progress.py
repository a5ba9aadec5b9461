"""How a long training says where it is: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from collections import deque

from tqdm import tqdm

LINE_SECONDS = 10.0  # between lines, where there is no terminal
RATE_SECONDS = 10.0  # over which the rate is measured


class Progress:
    """Show the steps of a training; use it as a context manager.

    Args:
        name: of what is trained.
        first, total: the step to begin with, and the number of steps.
        batch_size: pictures in a step.
        shown: whether to show anything.
    """

    def __init__(self, name: str, first: int, total: int, batch_size: int, shown: bool = True):
        self.name, self.total, self.batch_size = name, total, batch_size
        shown = shown and sys.stderr is not None  # None: a program without a console
        terminal = shown and getattr(sys.stderr, "isatty", bool)()
        self.bar = tqdm(initial=first, total=total, desc=name, unit="step", disable=not terminal)
        self.lines = shown and not terminal
        self.last_line = time.perf_counter()
        self.recent = deque([(self.last_line, first)])  # (when, steps done)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def update(self, done: int, loss: float) -> None:
        """Say that so many steps are done, and what the loss is."""
        now = time.perf_counter()
        rate = self.rate(now, done)
        self.bar.set_postfix(loss=f"{loss:.4f}", pictures_per_s=round(rate), refresh=False)
        self.bar.update(done - self.bar.n)
        if self.lines and (now - self.last_line >= LINE_SECONDS or done == self.total):
            self.last_line = now
            line = f"{self.name}: step {done} of {self.total}, loss {loss:.4f}, {rate:.0f} pictures/s"
            print(line, file=sys.stderr, flush=True)

    def rate(self, now: float, done: int) -> float:
        """Measure the pictures a second of the last RATE_SECONDS, or since the last call where that is longer ago."""
        self.recent.append((now, done))
        while len(self.recent) > 2 and now - self.recent[0][0] > RATE_SECONDS:
            self.recent.popleft()
        then, before = self.recent[0]
        return self.batch_size * (done - before) / max(now - then, 1e-9)

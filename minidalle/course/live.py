"""What the notebooks share: the budget, the pieces that you train and keep, the live loss, the oracle's verdict."""

import time

from minidalle.course import figures
from minidalle.evaluation import curves

REDRAW_SECONDS = 5.0  # between two drawings of a live loss


class LiveLoss:
    """A loss that is drawn in place while a training runs; call it with {"step": ..., "loss": ...}.

    Args:
        name: of what is trained.
        reference: curves of several seeds, as curves.load gives them, drawn as a band.
        lines: what theory says, a value for each name.
        total: steps of the training.
    """

    def __init__(
        self,
        name: str,
        reference: list[dict] | None = None,
        lines: dict[str, float] | None = None,
        total: int | None = None,
    ):
        self.name, self.reference, self.lines, self.total = name, reference, lines, total
        self.curve: list[tuple[int, float]] = []
        self._handle, self._drawn = None, float("-inf")

    def __call__(self, line: dict) -> None:
        """Take a line of metrics; draws at most every REDRAW_SECONDS, and when the last step is done."""
        self.curve.append((line["step"], line["loss"]))
        if line["step"] == self.total or time.perf_counter() - self._drawn > REDRAW_SECONDS:
            self.draw()

    def done(self) -> None:
        """Draw what has come since the last drawing."""
        if self.curve and self._drawn < float("inf"):
            self.draw()

    def draw(self) -> None:
        """Draw the curve in the place of the last drawing."""
        figure = figures.loss_curve(self.name, self.curve, self.reference, self.lines, self.total)
        (first, start), (last, end) = self.curve[0], self.curve[-1]
        alt = f"Loss of {self.name}: {start:.4g} at step {first}, {end:.4g} at step {last}. {self.verdict()}"
        data, metadata = figures.bundle(figure, alt.strip())
        if self._handle is None:
            self._handle = figures.display_bundle(data, metadata, display_id=True)
        else:
            self._handle.update(data, metadata=metadata, raw=True)
        self._drawn = float("inf") if last == self.total else time.perf_counter()

    def verdict(self) -> str:
        """Say where the curve ended beside the reference seeds."""
        if not self.reference or not self.curve or self.curve[-1][0] < self.reference[0]["steps"][-1]:
            return ""
        end = curves.final_loss(self.curve)
        ends = [curves.final_loss(other) for other in self.reference]
        low, high = min(ends), max(ends)
        slack = high - low  # a few seeds do not reach the ends of what seeds can do
        word = (
            "better than" if end < low - slack else "worse than" if end > high + slack else "where it should be beside"
        )
        return f"Loss over the last tenth {end:.3g}, {word} the {len(ends)} reference seeds ({low:.3g} to {high:.3g})."

"""What the notebooks share: the budget, the pieces that you train and keep, the live loss, the oracle's verdict."""

from minidalle.course.live import LiveLoss
from minidalle.course.session import begin, budget, check, exact_match, load, pipeline, seed, steps, train

__all__ = ["LiveLoss", "begin", "budget", "check", "exact_match", "load", "pipeline", "seed", "steps", "train"]

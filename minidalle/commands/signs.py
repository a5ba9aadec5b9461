"""Commands about the world of signs."""

import argparse

from minidalle.evaluation import sign_card
from minidalle.evaluation.tables import to_json
from minidalle.pipeline import MiniDalle


def evaluate_signs(pipes: dict[str, MiniDalle], args: argparse.Namespace, options: dict) -> None:
    """Print the report card of each system that was trained on the world of signs."""
    cards = {name: sign_card.sign_card(pipe, args.n, args.seed, args.test, **options) for name, pipe in pipes.items()}
    if args.json:
        print(to_json(cards if len(cards) > 1 else next(iter(cards.values()))))
    else:
        print("\n\n".join(f"{name}\n{sign_card.to_text(card)}" for name, card in cards.items()))

"""Train the network whose features the report card compares pictures by; three to four minutes of one thread.

    python tools/train_features.py --out data/checkpoints/features

It learns to name the facts of rendered scenes, of every split, so that it is blind to none. To retrain it changes every
Fréchet distance on every card, so it is done once and shipped.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from minidalle.checkpoint import save_model
from minidalle.evaluation.features import FeatureConfig, FeatureNet, answers
from minidalle.world.render import render
from minidalle.world.scenes import Scene, draw_one, draw_two

STEPS = 1500
BATCH_SIZE = 192
LEARNING_RATE = 3e-3
MAX_NOISE = 0.1  # standard deviation of the pixel noise in half the pictures, so that features name contents, not noise
FRESH = 8192  # scenes of another seed, which measure the accuracy and set the unit of the features


def draw(rng: random.Random, number: int) -> list[Scene]:
    """Draw scenes of every split, half of them of two objects."""
    return [(draw_one if rng.random() < 0.5 else draw_two)(rng) for _ in range(number)]


def train(seed: int, steps: int) -> FeatureNet:
    """Train a network from random weights; the same seed gives the same weights on the same machine."""
    torch.manual_seed(seed)
    rng = random.Random(f"features/{seed}")
    net = FeatureNet(FeatureConfig())
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        scenes = draw(rng, BATCH_SIZE)
        images = render(scenes, net.config.image_size)
        noise = MAX_NOISE * (2 * torch.rand(BATCH_SIZE, 1, 1, 1) - 1).clamp(min=0)
        logits, right = net(images + noise * torch.randn_like(images)), answers(scenes)
        loss = sum(F.cross_entropy(logits[fact], right[fact]) for fact in right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}, loss {loss.item():.4f}", flush=True)
    return net.eval()


@torch.no_grad()
def normalize(net: FeatureNet, images: torch.Tensor) -> None:
    """Scale the features to a root-mean-square distance of 1 from their mean; what the heads answer stays the same."""
    features = net.features(images)
    scale = (features - features.mean(0)).square().sum(1).mean().sqrt()
    for parameter in net.to_features.parameters():
        parameter /= scale
    for head in net.heads.values():
        head.weight *= scale


@torch.no_grad()
def accuracy(net: FeatureNet, scenes: list[Scene], images: torch.Tensor) -> dict[str, float]:
    """Measure the share of right answers, fact by fact; and of pictures of which all answers are right."""
    right = answers(scenes)
    hits = {fact: (logits.argmax(1) == right[fact]) for fact, logits in net(images).items()}
    hits["all"] = torch.stack(list(hits.values())).all(0)
    return {fact: round(found.float().mean().item(), 4) for fact, found in hits.items()}


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write features.safetensors to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    net = train(args.seed, args.steps)
    scenes = draw(random.Random(f"features/fresh/{args.seed}"), FRESH)
    images = render(scenes, net.config.image_size)
    normalize(net, images)
    found = accuracy(net, scenes, images)
    seconds = round(time.process_time() - started)
    save_model(args.out, net, {"seed": args.seed, "steps": args.steps, "seconds": seconds, "accuracy": found})
    print(f"Accuracy on {FRESH} fresh scenes: {found}; {seconds} s; kept in {args.out}.")


if __name__ == "__main__":
    main()

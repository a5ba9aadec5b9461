"""DALL·E 2 (unCLIP), small enough to train from random weights on a laptop, and complete.

Reading order: scenes, captions, oracle (the world and its measure); tokenizer, data; layers, clip (what a picture
means); diffusion, samplers (from noise to data); prior (caption to z_image); unet, decoder (z_image to picture);
upsampler (more pixels); pipeline (all of it); stages, training, runs (how it learns); report (how well).

Dimensions, everywhere: B batch, L tokens of a caption, N patches or pixels, W width of a transformer, D size of a CLIP
embedding, C H W channels, height and width of a picture, T timesteps of a diffusion.

Paper: Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents", arXiv 2204.06125.
"""

import os

# Threads that wait shall leave the processor to other programs; read once, when torch is first imported
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from minidalle.pipeline import MiniDalle

__all__ = ["MiniDalle"]

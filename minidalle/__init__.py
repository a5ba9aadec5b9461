"""DALL·E 2 (unCLIP), small enough to train from random weights on a laptop, and complete.

Reading order: world/ (scenes, captions, oracle: what is drawn, said and measured); tokenizer, layers, clip (what a
picture means); diffusion, samplers (from noise to data); prior (caption to z_image); unet, decoder (z_image to
picture); upsampler (more pixels); pipeline (all of it); losses, training/ (how it learns); evaluation/ (how well).

Dimensions, everywhere: B batch, L tokens of a caption, N patches or pixels, W width of a transformer, D size of a CLIP
embedding, K noised or candidate embeddings of one caption, C H W channels, height and width of a picture, T timesteps.

Paper: Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents", arXiv 2204.06125.
"""

from minidalle.pipeline import LANGUAGES, MiniDalle
from minidalle.world.grammar import scene_language

LANGUAGES["scenes"] = scene_language  # the models know no world; their headers name the one they were trained on

__all__ = ["MiniDalle"]

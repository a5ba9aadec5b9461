"""DALL·E 2 (unCLIP), small enough to train from random weights on a laptop, and complete.

Reading order: world/ (scenes, captions, oracle: what is drawn, said and measured); tokenizer, layers, clip (what a
picture means); diffusion, samplers (from noise to data); prior (caption to z_image); unet, decoder (z_image to
picture); upsampler (more pixels); pipeline (all of it); losses, training/ (how it learns); evaluation/ (how well).
Beside that road: ar_prior and pca (the paper's other prior); edits, inpaint, search (what else one does with pictures);
data/ (emoji, pictures of your own); parallel (several processes).

Dimensions, everywhere: B batch, L tokens of a caption, N patches or pixels, W width of a transformer, D size of a CLIP
embedding, K noised or candidate embeddings of one caption, C H W channels, height and width of a picture, T timesteps.

Paper: Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents", arXiv 2204.06125.
"""

__all__ = ["MiniDalle"]


def __getattr__(name: str):
    """Import MiniDalle when it is asked for: torch takes a second, in which Ctrl-C is the command line's to answer."""
    if name == "MiniDalle":
        from minidalle.pipeline import MiniDalle

        return MiniDalle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

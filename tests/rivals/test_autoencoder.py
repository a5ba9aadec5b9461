"""The plain autoencoder: two squared losses, and one picture a caption, whatever the seed."""

import torch
import torch.nn.functional as F

from minidalle.data.batches import World
from minidalle.rivals import autoencoder
from minidalle.rivals.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderLossConfig, autoencoder_loss
from minidalle.rivals.family import Rival
from minidalle.world.captions import TOKENIZER

CONFIG = AutoencoderConfig(text_width=16, text_depth=1, num_heads=2, image_size=16, code_dim=4, widths=(8, 8))


def test_the_loss_is_two_squared_errors():
    model, batch = Autoencoder(CONFIG), World(16).batch(0, 4)
    code, text_code = model.encode_image(batch.images), model.encode_text(batch.tokens, batch.mask)
    expected = F.mse_loss(model.decode(code), batch.images) + 0.3 * F.mse_loss(code, text_code)
    loss = autoencoder_loss(model, batch, torch.Generator(), AutoencoderLossConfig(code_weight=0.3))
    torch.testing.assert_close(loss, expected)


def test_every_seed_draws_the_same_picture():
    rival = Rival(autoencoder.FAMILY, {"autoencoder": Autoencoder(CONFIG)}, TOKENIZER)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
    drawn = rival("a red circle", num_images_per_prompt=3, generator=seeds).tensor
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])

"""The UNet: shapes in and out, what it looks at, and that it starts from nothing."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minidalle.unet import HEAD_WIDTH, MAP_SIZE, ResBlock, SpatialAttention, UNet, UNetConfig

SMALL = {"channels": 8, "num_blocks": 1, "emb_dim": 12, "context_dim": 8}
CONFIG = UNetConfig(image_size=16, channel_mults=(1, 2), attention_levels=(1,), **SMALL)
B, L = 3, 5
MASK = torch.arange(L) < torch.tensor([[1], [3], [L]])


def awake(net: nn.Module) -> nn.Module:
    """Fill all weights, so that nothing is silent because it starts at zero."""
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def inputs(config: UNetConfig = CONFIG) -> dict[str, torch.Tensor]:
    return {
        "x": torch.randn(B, config.in_channels, config.image_size, config.image_size),
        "t": torch.tensor([0, 400, 999]),
        "emb": torch.randn(B, config.emb_dim),
        "context": torch.randn(B, L, config.context_dim),
    }


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        UNetConfig(image_size=16, channel_mults=(1,), attention_levels=(), **SMALL),
        UNetConfig(image_size=16, channel_mults=(1, 2, 3), attention_levels=(0, 1, 2), **SMALL | {"num_blocks": 2}),
        UNetConfig(image_size=64, channel_mults=(1, 1, 2), attention_levels=(2,), **SMALL),
        UNetConfig(image_size=24, patch_size=1, channel_mults=(1, 2), attention_levels=(1,), **SMALL),
        UNetConfig(image_size=32, patch_size=4, channel_mults=(1, 2), attention_levels=(1,), **SMALL),
        UNetConfig(image_size=16, in_channels=6, out_channels=2, channel_mults=(1, 2), **SMALL),
        UNetConfig(image_size=16, channel_mults=(1, 2), **SMALL | {"channels": 64}),
    ],
    ids=["small", "one level", "attention", "64 px", "no patches", "patches of 4", "6 to 2 channels", "heads"],
)
def test_pictures_keep_their_size(config):
    found = awake(UNet(config))(**inputs(config))
    assert found.shape == (B, config.out_channels, config.image_size, config.image_size)
    assert found.isfinite().all()


def test_it_starts_with_an_output_of_zero_and_learns_away_from_it():
    net = UNet(CONFIG)
    found = net(**inputs())
    assert not found.any()
    (found - 1).square().sum().backward()
    assert net.conv_out.weight.grad.any()


def test_every_parameter_gets_a_gradient():
    net = awake(UNet(CONFIG))
    net(**inputs(), mask=MASK).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["x", "t", "emb", "context"])
def test_it_looks_at_all_that_it_is_given(name):
    net, given = awake(UNet(CONFIG)), inputs()
    changed = given | {name: given[name].flip(0)}
    assert (net(**changed) - net(**given))[0].abs().max() > 1e-4


def test_every_pixel_can_see_every_other():
    net, given = awake(UNet(CONFIG)), inputs()
    changed = given["x"].clone()
    changed[:, :, 0, 0] += 5
    assert ((net(**given | {"x": changed}) - net(**given)).abs().amax((0, 1)) > 0).all()


def test_details_go_round_the_middle():
    net, given = awake(UNet(CONFIG)), inputs()
    net.middle[-1].register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    assert not torch.allclose(net(**given), net(**given | {"x": given["x"].flip(0)}))


def test_masked_context_is_not_looked_at():
    net, given = awake(UNet(CONFIG)), inputs()
    noise = torch.randn_like(given["context"])
    masked = given | {"context": torch.where(MASK[..., None], given["context"], noise)}
    seen = given | {"context": torch.where(MASK[..., None], noise, given["context"])}
    before = net(**given, mask=MASK)
    torch.testing.assert_close(net(**masked, mask=MASK), before)
    assert ((net(**seen, mask=MASK) - before).abs().amax((1, 2, 3)) > 1e-5).all()


def test_no_mask_shows_all_of_the_context():
    net, given = awake(UNet(CONFIG)), inputs()
    torch.testing.assert_close(net(**given), net(**given, mask=torch.ones(B, L, dtype=torch.bool)))


def test_masked_context_might_as_well_be_absent():
    net, given = awake(UNet(CONFIG)), inputs()
    only_two = torch.arange(L).expand(B, L) < 2
    short = given | {"context": given["context"][:, :2]}
    torch.testing.assert_close(net(**given, mask=only_two), net(**short), rtol=1e-4, atol=1e-4)


def test_a_batch_is_its_members_one_by_one():
    net, given = awake(UNet(CONFIG)), inputs() | {"mask": MASK}
    rows = [net(**{name: value[i : i + 1] for name, value in given.items()}) for i in range(B)]
    torch.testing.assert_close(net(**given), torch.cat(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [8, 16, 40])
def test_convolutions_alone_take_any_size(size):
    config = replace(CONFIG, context_dim=0, attention_levels=())
    net = awake(UNet(config))
    found = net(torch.randn(B, 3, size, size), torch.tensor([0, 400, 999]))
    assert found.shape == (B, 3, size, size) and found.isfinite().all()
    net(torch.randn(B, 3, size, size), torch.tensor([0, 400, 999])).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("shape", [(B, 3, 18, 16), (B, 3, 16, 18), (B, 4, 16, 16)])
def test_convolutions_alone_refuse_what_they_cannot_halve(shape):
    net = UNet(replace(CONFIG, context_dim=0, attention_levels=()))
    with pytest.raises(ValueError, match=r"3 channels, height and width multiples of 4; found"):
        net(torch.zeros(shape), torch.zeros(B))


def test_attention_without_a_context_to_attend_to_is_refused():
    with pytest.raises(ValueError, match=r"convolutions only, and the levels \(1,\) are to attend"):
        replace(CONFIG, context_dim=0)


def test_the_timestep_is_condition_enough():
    net, given = awake(UNet(CONFIG)), inputs()
    x, t = given["x"], given["t"]
    torch.testing.assert_close(net(x, t), net(x, t, emb=torch.zeros_like(given["emb"])))
    assert not torch.allclose(net(x, t), net(x, t, context=given["context"]))
    assert not torch.allclose(net(x, t), net(x, t.flip(0)))


@pytest.mark.parametrize("shape", [(B, 3, 32, 32), (B, 1, 16, 16), (B, 3, 16, 8)])
def test_pictures_of_the_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"built for pictures of shape \(3, 16, 16\); found"):
        UNet(CONFIG)(**inputs() | {"x": torch.zeros(shape)})


@pytest.mark.parametrize("size,patch,mults", [(15, 2, (1,)), (20, 2, (1, 2, 2)), (32, 3, (1,))])
def test_sizes_that_cannot_be_halved_are_refused(size, patch, mults):
    multiple = patch * 2 ** (len(mults) - 1)
    with pytest.raises(ValueError, match=f"cannot halve {size} pixels that often: choose a multiple of {multiple}"):
        UNetConfig(image_size=size, patch_size=patch, channel_mults=mults)


@pytest.mark.parametrize(
    "change", [{"channels": 18}, {"channels": 3}, {"channels": 2}, {"channels": 12, "channel_mults": (1, 3)}]
)
def test_channels_that_cannot_be_normalised_are_refused(change):
    with pytest.raises(ValueError, match=r"channels times .* cannot be normalised in groups: choose a multiple of 8"):
        replace(CONFIG, **change)


@pytest.mark.parametrize("level", [2, -1])
def test_a_level_that_is_not_there_is_refused(level):
    with pytest.raises(ValueError, match=f"There is no level {level}: name levels from 0 to 1"):
        replace(CONFIG, attention_levels=(0, level))


def test_a_residual_block_is_the_papers():
    """Dhariwal and Nichol 2021, eq. 3: y_s GroupNorm(h) + y_b, between two convolutions, with SiLU before each."""
    block = awake(ResBlock(8, 16, 12))
    x, emb = torch.randn(B, 8, 6, 6), torch.randn(B, 12)
    scale, shift = block.scale_shift(emb * torch.sigmoid(emb))[:, :, None, None].chunk(2, dim=1)
    h = block.conv_1(F.silu(F.group_norm(x, 2, block.norm_1.weight, block.norm_1.bias)))
    h = F.group_norm(h, 4, block.norm_2.weight, block.norm_2.bias) * (1 + scale) + shift
    torch.testing.assert_close(block(x, emb), block.conv_2(F.silu(h)) + block.shortcut(x))


@pytest.mark.parametrize("channels", [8, HEAD_WIDTH, 3 * HEAD_WIDTH])
def test_attention_has_a_head_for_every_thirty_two_channels(channels):
    attention = SpatialAttention(channels, 4, 8)
    heads = max(1, channels // 32)
    assert attention.self_attention.num_heads == attention.cross_attention.num_heads == heads


def test_pixels_know_where_they_stand():
    """Attention alone would only permute its answers with its pixels."""
    attention = awake(SpatialAttention(8, 4, 8))
    x, order = torch.randn(1, 8, 16), torch.randperm(16)

    def difference() -> float:
        found, other = (attention(pixels.view(1, 8, 4, 4), None, None).flatten(2) for pixels in (x[:, :, order], x))
        return (found - other[:, :, order]).abs().max().item()

    knowing = difference()
    attention.positions.data.zero_()
    assert difference() < 1e-5 < 1e-3 < knowing


@pytest.mark.parametrize("size", [4, 8, 2])
def test_the_map_that_the_embedding_draws_keeps_up_and_down_left_and_right(size):
    net = awake(UNet(CONFIG))
    emb, width = torch.randn(B, 12), net.to_map.out_features // MAP_SIZE**2
    cells = net.to_map(F.silu(emb)).view(B, width, MAP_SIZE, MAP_SIZE)  # channel, row, column
    found = net._map(emb, torch.empty(B, width, size, size))
    torch.testing.assert_close(found, F.interpolate(cells, size, mode="bilinear"))


def test_folded_pixels_come_back_to_where_they_were():
    """With the network between them cut out, folding and unfolding a picture change nothing."""
    net = UNet(replace(CONFIG, image_size=8))
    given = inputs(net.config)
    net.conv_in.register_forward_hook(lambda module, args, output: folded.append(args[0]))
    folded = []
    net.conv_out.register_forward_hook(lambda module, args, output: folded[0])
    torch.testing.assert_close(net(**given), given["x"])
    assert torch.equal(folded[0], F.pixel_unshuffle(given["x"], 2))

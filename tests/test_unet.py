"""The UNet: shapes in and out, what it looks at, and that it starts from nothing."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from minidalle.unet import UNet, UNetConfig

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
def test_it_looks_at_all_that_it_is_told(name):
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


def test_it_need_not_be_told_anything_but_the_timestep():
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

"""Rectified flow: its path, loss and sampler where the exact velocity is known, its transformer, and its student."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from minidalle.checkpoint import load_model
from minidalle.data.batches import World
from minidalle.losses import mean_of
from minidalle.rivals import Rival, flow, flow_few
from minidalle.rivals.dit import PREDICTIONS, DiT, DiTBlock, DiTConfig, Flow, FlowConfig, grid_embedding
from minidalle.rivals.flow import (
    FlowLossConfig,
    draw_times,
    errors_of,
    euler_sample_loop,
    flow_loss,
    interpolate,
    velocity_field,
)
from minidalle.rivals.flow_few import FewFlow, FewLossConfig, copy_weights, cross, flow_few_loss
from minidalle.tokenizer import Tokenizer
from minidalle.training.loop import fit
from minidalle.training.run import train
from minidalle.training.stages import StageLoss
from minidalle.training.trainer import Trainer
from minidalle.world.captions import TOKENIZER

SIZES = {"vocab_size": TOKENIZER.vocab_size, "context_length": TOKENIZER.context_length}
CONFIG = FlowConfig(
    **SIZES, text_width=16, text_depth=1, num_heads=2, dit=DiTConfig(width=16, depth=2, num_heads=2, channels=8)
)
STUDENT = replace(
    flow_few.FAMILY,
    models={"flow": CONFIG, "flow_few": CONFIG},
    recipes={
        "quick": {
            "flow": replace(flow.recipe(3, 0.9), batch_size=4),
            "flow_few": replace(flow_few.recipe(3, 0.9), batch_size=4),
        }
    },
)
MEAN, STD = 0.4, 0.3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_a_gaussian(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Give the exact velocity for data N(MEAN, STD^2): the mean of noise - x_start, given x_t."""
    t = flow.per_picture(t, x_t)
    covariance, variance = t - (1 - t) * STD**2, (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + covariance / variance * (x_t - (1 - t) * MEAN)


def left_over(t: float) -> float:
    """Give the variance of noise - x_start, given x_t."""
    return 1 + STD**2 - (t - (1 - t) * STD**2) ** 2 / ((1 - t) ** 2 * STD**2 + t**2)


def trained(config: FlowConfig = CONFIG, model_class: type[Flow] = Flow) -> Flow:
    """Make a network none of whose weights is zero, as training leaves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def rival_of(model: Flow, family=flow.FAMILY) -> Rival:
    return Rival(family, {family.name: model}, Tokenizer.from_dict(TOKENIZER.to_dict()))


# The path and the loss


@given(st.floats(0, 1))
def test_the_path_is_the_line_from_data_to_noise(t):
    x_start, noise = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 0.25]])
    at = interpolate(x_start, noise, torch.tensor([t]))
    torch.testing.assert_close(at, (1 - t) * x_start + t * noise)


def test_the_velocity_is_the_slope_of_the_path():
    x_start, noise = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64).unbind()
    t = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    slope = (interpolate(x_start, noise, t + 0.01) - interpolate(x_start, noise, t)) / 0.01
    torch.testing.assert_close(slope, noise - x_start)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.7, 1.0])
def test_the_exact_velocity_leaves_the_known_variance(t):
    x_start = MEAN + STD * torch.randn(400_000, 1, generator=generator(1))
    noise, times = torch.randn(400_000, 1, generator=generator(2)), torch.full((400_000,), t)
    x_t = interpolate(x_start, noise, times)
    loss = errors_of(of_a_gaussian, x_t, times, noise - x_start, "velocity").mean()
    assert loss.item() == pytest.approx(left_over(t), rel=0.02)
    other = errors_of(lambda x, t: of_a_gaussian(x, t) + 0.1, x_t, times, noise - x_start, "velocity").mean()
    assert other.item() == pytest.approx(left_over(t) + 0.01, rel=0.02)  # any other velocity leaves more

    def picture(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x_t - t[:, None] * of_a_gaussian(x_t, t)

    loss = errors_of(picture, x_t, times, noise - x_start, "x_start").mean()
    assert loss.item() == pytest.approx(t**2 * left_over(t), rel=0.02)


@pytest.mark.parametrize("mean, deviation", [(0.0, 1.0), (0.8, 1.2)])
def test_times_are_logit_normal(mean, deviation):
    times = draw_times(100_000, generator(), FlowLossConfig(logit_normal=(mean, deviation)))
    shares = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    expected = TransformedDistribution(Normal(mean, deviation), SigmoidTransform()).icdf(shares)
    torch.testing.assert_close(times.quantile(shares), expected, atol=0.01, rtol=0)


def test_times_are_even_in_the_plain_setting_and_never_zero():
    times = draw_times(100_000, generator(), FlowLossConfig(logit_normal=None))
    shares = torch.linspace(0.1, 0.9, 9)
    torch.testing.assert_close(times.quantile(shares), shares, atol=0.01, rtol=0)
    assert times.min() > 0 and times.max() <= 1


def test_the_root_of_an_error_is_taken_above_a_bound():
    errors = torch.tensor([0.09, 4.0])
    assert mean_of(errors, None).item() == pytest.approx(2.045)
    assert mean_of(errors, 0.01).item() == pytest.approx((0.3 + 2) / 2, abs=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_plain_loss_is_the_papers(prediction):
    model, batch = trained(replace(CONFIG, prediction=prediction)), World().batch(0, 4)
    plain = FlowLossConfig(p_drop_text=0.0, logit_normal=None, root_below=None)
    loss = flow_loss(model, batch, generator(3), plain)
    draws = generator(3)
    noise = torch.randn(batch.images.shape, generator=draws)
    t = 1 - torch.rand(4, generator=draws)
    x_t = (1 - t)[:, None, None, None] * batch.images + t[:, None, None, None] * noise
    target = noise - batch.images if prediction == "velocity" else batch.images
    expected = (model(x_t, t, batch.tokens, batch.mask) - target).square().mean()
    torch.testing.assert_close(loss, expected)


# The sampler


def test_many_steps_carry_noise_to_the_data():
    noise, errors = torch.linspace(-3, 3, 7)[:, None].double(), []
    for num_steps in (100, 200, 400):
        *_, found = euler_sample_loop(of_a_gaussian, noise, num_steps)
        errors.append((found - (MEAN + STD * noise)).abs().max().item())
    assert errors[-1] < 0.01
    assert all(before / after == pytest.approx(2, rel=0.05) for before, after in pairwise(errors))  # of first order


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_point_is_met_exactly_however_few_the_steps(num_steps):
    point, noise = torch.tensor([0.3, -0.7]), torch.randn(5, 2)
    *_, found = euler_sample_loop(lambda x_t, t: (x_t - point) / t[:, None], noise, num_steps)
    torch.testing.assert_close(found, point.expand(5, 2))


def test_steps_are_even_and_begin_where_they_are_told():
    asked = []

    def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(t.tolist())
        return torch.ones_like(x_t)

    start, end = torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.0])
    *_, found = euler_sample_loop(velocity, torch.zeros(2, 3), 2, start, end)
    assert asked == [[1.0, 0.5], [0.75, 0.25]]
    torch.testing.assert_close(found, torch.full((2, 3), -0.5))


# The transformer


def test_a_new_block_is_the_identity():
    block, x = DiTBlock(16, 2), torch.randn(3, 5, 16)
    nothing = torch.zeros(6, 3, 1, 16)
    assert torch.equal(block(x, nothing, torch.ones(3, 5, dtype=torch.bool)), x)
    gated = nothing.clone()
    gated[2] = 1.0
    assert not torch.equal(block(x, gated, torch.ones(3, 5, dtype=torch.bool)), x)


def test_a_block_scales_and_shifts_before_and_gates_behind():
    block, x, mask = DiTBlock(16, 2), torch.randn(3, 5, 16), torch.ones(3, 5, dtype=torch.bool)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation = torch.randn(6, 3, 1, 16)

    def plain(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    middle = x + gate_1 * block.attention((1 + scale_1) * plain(x) + shift_1, mask=mask)
    expected = middle + gate_2 * block.mlp((1 + scale_2) * plain(middle) + shift_2)
    torch.testing.assert_close(block(x, modulation, mask), expected)


@pytest.mark.parametrize("convolutions", [True, False])
def test_a_new_network_answers_grey_and_every_weight_learns(convolutions):
    config = replace(CONFIG, dit=replace(CONFIG.dit, convolutions=convolutions))
    batch, t = World().batch(0, 2), torch.tensor([0.2, 0.9])
    assert Flow(config)(batch.images, t, batch.tokens, batch.mask).abs().max() == 0
    model = trained(config)
    model(batch.images, t, batch.tokens, batch.mask).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_patch_goes_through_its_own_token():
    """Where blocks are the identity, a pixel depends on the pixels of its patch alone."""
    config = replace(CONFIG.dit, convolutions=False, image_size=8)
    dit = DiT(config)
    torch.nn.init.normal_(dit.to_cells.weight)
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    words, mask = torch.randn(1, 3, 16), torch.ones(1, 3, dtype=torch.bool)
    dit(x, torch.tensor([0.5]), torch.zeros(1, 16), words, mask)[0, 1, 2, 6].backward()
    seen = x.grad[0].abs().sum(0) > 0
    assert seen[:4, 4:].all() and seen.sum() == 16


def test_places_begin_as_sines_of_row_and_column():
    grid = grid_embedding(3, 8).view(3, 3, 8)
    assert torch.equal(grid[1, :, :4], grid[1, :1, :4].expand(3, 4))  # all of a row alike, then all of a column
    assert torch.equal(grid[:, 1, 4:], grid[:1, 1, 4:].expand(3, 4))
    slow = 2 / 32**0.5
    expected = torch.tensor([2.0, slow]).cos().tolist() + torch.tensor([2.0, slow]).sin().tolist()
    assert grid[2, 0, :4].tolist() == pytest.approx(expected) and grid[0, 2, 4:].tolist() == pytest.approx(expected)


def test_a_patch_looks_at_others_and_at_words():
    dit = trained().dit
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    words = torch.randn(1, 3, 16, requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    dit(x, torch.tensor([0.5]), torch.zeros(1, 16), words, mask)[0, 0, 0, 0].backward()
    assert (x.grad[0].abs().sum(0) > 0).all()
    assert (words.grad[0].abs().sum(1) > 0).tolist() == [True, True, False]


def test_padding_changes_nothing():
    model, batch = trained(), World().batch(0, 2)
    longer = TOKENIZER.context_length - batch.tokens.shape[1]
    tokens, mask = torch.nn.functional.pad(batch.tokens, (0, longer)), torch.nn.functional.pad(batch.mask, (0, longer))
    t = torch.tensor([0.3, 0.6])
    short, long = model(batch.images, t, batch.tokens, batch.mask), model(batch.images, t, tokens, mask)
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: FlowConfig(prediction="eps"), "eps.*velocity, x_start"),
        (lambda: FlowConfig(image_size=64), "32 pixels, the pictures have 64"),
        (lambda: DiTConfig(patch_size=5), "Patches of 5 cannot tile 32"),
        (lambda: DiTConfig(patch_size=1), "Patches of 1 cannot tile 32"),
        (lambda: DiTConfig(width=90), "90 channels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# Captions and guidance


def test_a_hidden_caption_is_not_seen():
    model, batch, t = trained(), World().batch(0, 2), torch.tensor([0.4, 0.4])
    hide = torch.tensor([True, False])
    other = batch.tokens.flip(0)
    one = model(batch.images, t, batch.tokens, torch.ones_like(batch.mask), hide)
    two = model(batch.images, t, other, torch.ones_like(batch.mask), hide)
    torch.testing.assert_close(one[0], two[0])
    assert (one[1] - two[1]).abs().max() > 1e-3


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5])
def test_guidance_pushes_the_velocity_away_from_the_one_without_a_caption(prediction, scale):
    model, batch = trained(replace(CONFIG, prediction=prediction)), World().batch(0, 2)
    x_t, t = 0.1 * batch.images, torch.tensor([0.9, 0.5])
    shown, hidden = (
        flow.velocity_of(model(x_t, t, batch.tokens, batch.mask, torch.full((2,), hide)), x_t, t, prediction)
        for hide in (False, True)
    )
    expected = hidden + scale * (shown - hidden)
    assert (shown - hidden).abs().max() > 1e-3
    times = t[:, None, None, None]
    x_start = (x_t - times * expected).clamp(-1, 1)
    expected = (x_t - x_start) / times
    found = velocity_field(model, batch.tokens, batch.mask, scale)(x_t, t)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_picture_that_a_velocity_points_at_is_clipped():
    model, batch = trained(), World().batch(0, 2)
    with torch.no_grad():
        model.dit.conv_out.bias.fill_(5.0)
    t = torch.tensor([0.9, 0.5])
    velocity = velocity_field(model, batch.tokens, batch.mask)(batch.images, t)
    x_start = batch.images - t[:, None, None, None] * velocity
    torch.testing.assert_close(x_start, torch.ones_like(x_start), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_picture_is_the_same_alone_or_in_a_batch(scale):
    rival, seeds = rival_of(trained()), [generator(5), generator(6)]
    options = {"num_inference_steps": 3, "guidance_scale": scale}
    both = rival(["a red circle", "a big blue ring at the top"], generator=seeds, **options).tensor
    alone = rival("a big blue ring at the top", generator=[generator(6)], **options).tensor
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)
    assert (both[0] - both[1]).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [0, 1001, 1.5])
def test_numbers_of_steps_that_make_no_sense_are_refused(steps):
    with pytest.raises(ValueError, match="num_inference_steps"):
        rival_of(trained())("a red circle", num_inference_steps=steps)


# The student


def test_the_student_begins_as_its_teacher():
    teacher, student = trained(), FewFlow(CONFIG)
    copy_weights(student, None, teacher)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))


def test_what_the_teacher_draws_of_noise_is_what_the_sampler_draws():
    """With one window the pairs are those of reflow: noise, and the picture that the teacher makes of it."""
    teacher, batch = trained(), World().batch(0, 2)
    noise, ones = torch.randn(batch.images.shape, generator=generator(1)), torch.ones(2)
    config = FewLossConfig(windows=1, teacher_steps=5, guidance_scale=1.5)
    once, twice = (cross(teacher, batch, noise, ones, 0 * ones, config) for _ in range(2))
    assert torch.equal(once, twice) and not once.requires_grad
    *_, drawn = euler_sample_loop(velocity_field(teacher, batch.tokens, batch.mask, 1.5), noise, 5)
    torch.testing.assert_close(once, drawn)


def test_there_is_nothing_to_learn_from_a_teacher_that_takes_a_window_in_one_step():
    teacher, batch = trained(), World().batch(0, 4)
    with torch.no_grad():
        teacher.dit.conv_out.weight.mul_(0.2)  # so that nothing is clipped
    student = FewFlow(teacher.config)
    copy_weights(student, None, teacher)
    config = FewLossConfig(teacher_steps=1, guidance_scale=1.0, root_below=None)
    assert flow_few_loss(student, batch, generator(1), config, teacher).item() < 1e-11
    for other in ({"teacher_steps": 2}, {"guidance_scale": 2.0}, {"p_beginning": 0.0}):
        assert flow_few_loss(student, batch, generator(1), replace(config, **other), teacher).item() > 1e-8


def test_with_one_window_the_loss_is_that_of_reflow():
    teacher, batch = trained(replace(CONFIG, prediction="velocity")), World().batch(0, 4)
    student = trained(teacher.config, FewFlow)
    config = FewLossConfig(windows=1, teacher_steps=2, guidance_scale=1.0, p_beginning=0.0, root_below=None)
    loss = flow_few_loss(student, batch, generator(4), config, teacher)
    draws = generator(4)
    noise = torch.randn(batch.images.shape, generator=draws)
    torch.rand(4, generator=draws)  # the window
    t = 1 - torch.rand(4, generator=draws)
    *_, drawn = euler_sample_loop(velocity_field(teacher, batch.tokens, batch.mask), noise, 2)
    output = student(interpolate(drawn, noise, t), t, batch.tokens, batch.mask)
    torch.testing.assert_close(loss, (output - (noise - drawn)).square().mean())


def test_windows_begin_and_end_where_the_students_steps_do(monkeypatch):
    asked = []
    monkeypatch.setattr(
        flow_few, "cross", lambda flow, batch, x_t, start, end, config: asked.append((start, end)) or 0 * x_t
    )
    flow_few_loss(trained(CONFIG, FewFlow), World().batch(0, 32), generator(), FewLossConfig(), trained())
    ((start, end),) = asked
    assert set(start.tolist()) == {0.25, 0.5, 0.75, 1.0} and torch.equal(start - end, torch.full((32,), 0.25))


# Training


def test_both_stages_train_and_are_drawn_from(tmp_path):
    train(STUDENT.preset(), "quick", tmp_path, ("flow", "flow_few"))
    rival = Rival.from_pretrained(STUDENT, tmp_path, "cpu")
    pictures = rival(["a red circle"] * 2, generator=[generator(1), generator(2)]).tensor
    assert pictures.shape == (2, 3, 32, 32)
    teacher, header = load_model(Flow, tmp_path)
    student, own = load_model(FewFlow, tmp_path)
    assert own["flow"] == header["sha256"] and not torch.equal(teacher.to_emb.weight, student.to_emb.weight)
    with pytest.raises(ValueError, match="flow_few has no guidance_scale"):
        rival("a red circle", guidance_scale=2.0)


@pytest.mark.parametrize("kind", ["flow", "flow_few"])
def test_a_stopped_stage_goes_on_as_if_it_had_not_been_stopped(tmp_path, kind):
    frozen = {"flow": trained()} if kind == "flow_few" else {}
    how, model_class = STUDENT.recipes["quick"][kind], {"flow": Flow, "flow_few": FewFlow}[kind]
    loss_at, path = StageLoss(kind, World(seed=1), how, frozen, torch.device("cpu")), tmp_path / "state.safetensors"
    whole = fit(trained(CONFIG, model_class), loss_at, how, progress=False)
    trainer = Trainer(trained(CONFIG, model_class).train(), how)
    for step in range(2):
        trainer.step(loss_at, step)
    trainer.save(path, 2, 0.0, None)
    resumed = fit(trained(CONFIG, model_class), loss_at, how, state_path=path, resume=True, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))

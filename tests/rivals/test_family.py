"""Rivals as a whole: trained by the package's loop, kept as its checkpoints, drawn and measured by its commands."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from minidalle import rivals
from minidalle.checkpoint import CheckpointError, find_folder, load_model, read_header, save_model
from minidalle.cli import main
from minidalle.data.pictures import Pictures
from minidalle.evaluation.report import report_card
from minidalle.pipeline import MiniDalle
from minidalle.rivals import FAMILIES, Rival, from_pretrained, vae
from minidalle.training.recipes import TINY, fitted
from minidalle.training.run import train
from minidalle.world.captions import TOKENIZER

SHIPPED = [name for name in FAMILIES if name != "latent_clip"]  # whose CLIP would be there once more
SMALL = replace(
    vae.FAMILY,
    models={"vae": vae.VAEConfig(text_width=16, text_depth=1, num_heads=2, code_dim=4, widths=(8, 8))},
    recipes={"quick": {"vae": replace(vae.recipe(6, 0.9), batch_size=4)}},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rival")
    train(SMALL.preset(), "quick", path, ("vae",))
    return path


@pytest.fixture
def rival(folder) -> Rival:
    return from_pretrained(folder, "cpu")


def noise(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_family_is_complete(family):
    assert family.name == list(family.stages)[-1] and set(family.models) == set(family.stages)
    assert set(family.recipes) == {"quick", "full"}
    assert all(set(recipe) == set(family.stages) for recipe in family.recipes.values())
    for kind, stage in family.stages.items():
        model = stage.model_class(family.models[kind])
        assert model.kind == kind and model.config == family.models[kind]
        assert set(stage.needs) <= set(family.stages) | {"clip"}
    assert set(family.preset().recipes) == {"smoke", "quick", "full"}
    assert family.preset().recipes["quick"].two_objects == TINY.recipes["quick"].two_objects


def test_the_names_of_rivals_are_no_stages_of_unclip():
    assert not set(FAMILIES) & set(TINY.models) and not set(FAMILIES) & set(rivals.VARIANTS)


def test_a_rival_draws_what_unclip_would_be_asked_for(rival):
    output = rival(["a red circle", "a big blue ring"], num_images_per_prompt=2, generator=noise(0, 1, 2, 3))
    assert output.tensor.shape == (4, 3, 32, 32) and output.images[0].size == (32, 32)
    assert output.captions == rival.captions(["a red circle", "a big blue ring"])
    assert output.tensor.abs().max() <= 1


def test_a_picture_does_not_depend_on_those_drawn_with_it(rival):
    both = rival(["a red circle", "a blue ring at the top"], generator=noise(3, 4)).tensor
    alone = rival("a blue ring at the top", generator=noise(4)).tensor
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt, said", [("a red dragon", "dragon"), ("", "empty"), ([], "prompt")])
def test_a_prompt_that_is_not_understood_is_refused_as_by_unclip(rival, prompt, said):
    with pytest.raises(ValueError, match=said):
        rival(prompt)


@pytest.mark.parametrize("option", ["guidance_scale", "num_inference_steps", "num_candidates", "upsample"])
def test_an_option_that_a_family_does_not_have_is_refused_by_name(rival, option):
    with pytest.raises(ValueError, match=f"vae has no {option}: leave it out; vae takes no options"):
        rival("a red circle", **{option: 2})
    rival("a red circle", upsample=0, **{option: None} if option != "upsample" else {})


def test_a_report_card_takes_a_rival(rival, folder):
    card = report_card(rival, n=4, folder=folder)
    assert set(card["following"]) >= {"one object, seen", "one object, held out"} and "retrieval" not in card
    assert card["cost"]["network calls a picture"] == {"text encoder": 1, "decoder": 1}
    assert set(card["cost"]["parameters"]) == set(card["cost"]["training seconds"]) == {"vae"}


def test_commands_take_a_rival_by_its_folder_and_by_its_file(folder, tmp_path, capsys):
    for source in (folder, folder / "vae.safetensors"):
        out = tmp_path / "picture.png"
        assert main(["generate", "a red circle", "--checkpoint", str(source), "--out", str(out)]) == 0
        assert out.is_file()
    assert main(["evaluate", str(folder), "unclip", "-n", "4", "--json"]) == 0
    out = capsys.readouterr().out
    assert set(json.loads(out[out.index("{") :])) == {str(folder), "unclip"}
    assert main(["info", str(folder)]) == 0
    assert "vae: " in capsys.readouterr().out


def test_the_guidance_of_a_family_that_has_none_is_refused_by_the_command(folder, capsys):
    assert main(["generate", "a red circle", "--checkpoint", str(folder), "--guidance-scale", "2"]) == 1
    assert "vae has no guidance_scale" in capsys.readouterr().err


def test_train_takes_a_rival_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(FAMILIES, "vae", SMALL)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "vae", "--device", "cpu"]) == 0
    assert (tmp_path / "runs" / "vae" / "vae.safetensors").is_file()
    assert main(["train", "vae", "--preset", "colab"]) == 1
    assert "has one size" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "pixelcnn"])
    assert "pixelcnn" in capsys.readouterr().err


def test_a_stopped_rival_goes_on(tmp_path, folder):
    train(SMALL.preset(), "quick", tmp_path, ("vae",), resume=True)
    again, _ = load_model(vae.VAE, tmp_path)
    for a, b in zip(again.parameters(), load_model(vae.VAE, folder)[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_folder_of_several_rivals_is_asked_which(tmp_path, folder):
    model, header = load_model(vae.VAE, folder)
    save_model(tmp_path, model, {key: value for key, value in header.items() if key != "config"})
    (tmp_path / "autoencoder.safetensors").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="holds autoencoder and vae"):
        from_pretrained(tmp_path, "cpu")
    assert from_pretrained(tmp_path / "vae.safetensors", "cpu").family.name == "vae"


def test_the_file_of_another_family_is_refused(tmp_path, folder):
    (tmp_path / "autoencoder.safetensors").write_bytes((folder / "vae.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match='holds a "vae"; a "autoencoder" was expected'):
        from_pretrained(tmp_path, "cpu")


def test_shipped_weights_go_by_their_names_and_unclip_by_its_place_on_the_table():
    assert isinstance(from_pretrained("tiny", "cpu"), MiniDalle)
    assert from_pretrained("unclip", "cpu").prior.kind == "prior"
    assert from_pretrained("unclip_ar", "cpu").prior.kind == "ar_prior"
    with pytest.raises(CheckpointError, match="neither a folder nor the name"):
        from_pretrained("pixelcnn", "cpu")


@pytest.mark.parametrize("name", [*SHIPPED, "tiny"])
def test_all_shipped_weights_are_told_of_and_drawn_with(name, capsys):
    assert main(["info", name, "--device", "cpu"]) == 0
    assert "cannot" not in capsys.readouterr().out
    drawn = from_pretrained(name, "cpu")("a red circle", generator=noise(0))
    assert drawn.tensor.shape[1:] == (3, 32, 32)


def test_options_are_refused_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(
        "minidalle.commands.evaluate.report_card", lambda *_, **__: pytest.fail("something was measured")
    )
    assert main(["evaluate", "unclip", "vae", "-n", "4", "--guidance-scale", "2"]) == 1
    assert "vae has no guidance_scale" in capsys.readouterr().err


def test_who_needs_unclip_is_told_so_where_a_rival_is_named(tmp_path, capsys):
    with pytest.raises(CheckpointError, match='"vae" holds no clip, which is needed here'):
        MiniDalle.from_pretrained("vae")
    assert main(["search", str(tmp_path), "a red circle", "--checkpoint", "vae"]) == 1
    assert "holds no clip" in capsys.readouterr().err


def test_a_clip_of_other_words_is_no_judge(folder, tmp_path):
    for path in folder.glob("vae*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shipped = Path(__file__).parents[2] / "data" / "checkpoints"
    (tmp_path / "clip.safetensors").write_bytes((shipped / "tiny" / "clip.safetensors").read_bytes())
    assert from_pretrained(tmp_path / "vae.safetensors", "cpu").clip is not None
    (tmp_path / "clip.safetensors").write_bytes((shipped / "emoji" / "clip.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="reads other words than the rival"):
        from_pretrained(tmp_path / "vae.safetensors", "cpu")


@pytest.mark.parametrize("source", [None, ["unclip"], 3])
def test_what_is_no_name_at_all_is_refused(source):
    with pytest.raises(CheckpointError, match="neither a folder nor the name"):
        from_pretrained(source, "cpu")


def test_a_rival_of_pictures_of_your_own_draws_and_has_no_card(tmp_path, capsys):
    """It lacks the parts that such a card takes to pieces: a sentence, from whichever side it is asked."""
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["data", "scenes", "--out", str(data), "-n", "40", "--size", "32"]) == 0
    pictures = Pictures(data)
    train(SMALL.preset(), "quick", run, ("vae",), collection=pictures)
    assert from_pretrained(run, "cpu")("a red circle", generator=noise(0)).tensor.shape == (1, 3, 32, 32)
    for arguments in (["evaluate", str(run), "--data", str(data)], ["evaluate", str(run)], ["sheet", str(run)]):
        assert main(arguments) == 1
        assert "is a rival, and only drawn scenes have a card for it" in capsys.readouterr().err


@pytest.mark.parametrize("times, size", [(0, 32), (1, 64), (2, 128)])
def test_upsampling_is_asked_for_once_or_twice_before_the_prompt_or_after_it(tmp_path, times, size):
    for where in (lambda more: [*more, "a red circle"], lambda more: ["a red circle", *more]):
        out = tmp_path / f"{size}.png"
        more = ["--upsample"] * times
        assert main(["generate", *where(more), "--steps", "1", "--scale", "1", "--out", str(out)]) == 0
        with Image.open(out) as picture:
            assert picture.size == (size, size)


@pytest.mark.parametrize("family", [FAMILIES[name] for name in SHIPPED], ids=SHIPPED)
def test_the_shipped_weights_are_those_of_the_full_recipe_as_it_is(family):
    preset = fitted(family.preset(), TOKENIZER)
    for kind in family.drawn:
        header = read_header(find_folder(family.name, FAMILIES) / f"{kind}.safetensors", kind)
        assert header["stage"] == json.loads(json.dumps(preset.recipes["full"].stages[kind].to_dict()))
        assert header["config"] == json.loads(json.dumps(asdict(preset.models[kind])))
        assert (header["recipe"], header["seed"]) == ("full", 0)

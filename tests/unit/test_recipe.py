import json
from functools import reduce

import pytest

from selfsup import recipe as recipe_module
from selfsup.recipe import (
    Recipe,
    RecipeError,
    canonical,
    check_recipe,
    differences,
    fingerprint,
    flattened,
    load_recipe,
    overridden,
    parse_recipe,
    pretraining_part,
    read_recipe_file,
    recipe_files,
    recipe_names,
)
from selfsup.settings.library import Library
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import plain, without_later


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid(name):
    recipe = load_recipe(name)
    methods = [method for method in METHODS if name.startswith(method)] or ["byol"]
    assert recipe.method in methods and check_recipe(json.loads(canonical(recipe)), "its JSON") == recipe


def test_the_papers_recipes_are_complete_and_their_variants_hold_differences_only():
    complete = {name for name in recipe_names() if len(recipe_files(name)) == 1}
    assert complete >= {"cifar10", "imagenet", "simclr_cifar10"}
    for name in complete:
        (path,) = recipe_files(name)
        assert without_later(Recipe, load_recipe(name)) == without_later(Recipe, read_recipe_file(path))
    assert [path.stem for path in recipe_files("imagenet_official_40")] == [
        "imagenet",
        "official",
        "imagenet_official",
        "imagenet_official_40",
    ]
    for name in set(recipe_names()) - complete:
        *bases, own = map(read_recipe_file, recipe_files(name))
        below = reduce(overridden, bases)
        assert bool(own) == (differences(overridden(below, own), below) != [])


# Paper, section 6, value by value.
PAPER = {
    "cifar10": {
        "epochs": 1000,
        "global_batch": 512,
        "model.backbone": "resnet18",
        "optimizer.peak_lr": 2.0,
        "optimizer.weight_decay": 1e-6,
        "augment.size": 32,
        "augment.mean": [0.4914, 0.4822, 0.4465],
        "augment.std": [0.247, 0.243, 0.261],
        "augment.views.0.crop.scale": [0.2, 1.0],
        "linear.test": {"resize": 36, "crop": 32, "interpolation": "bicubic"},
    },
    "imagenet": {
        "epochs": 1000,
        "global_batch": 4096,
        "model.backbone": "resnet50",
        "optimizer.peak_lr": 3.2,
        "optimizer.weight_decay": 1.5e-6,
        "augment.size": 224,
        "augment.mean": [0.485, 0.456, 0.406],
        "augment.std": [0.229, 0.224, 0.225],
        "augment.views.0.crop.scale": [0.08, 1.0],
        "linear.test": {"resize": 256, "crop": 224, "interpolation": "bicubic"},
    },
}
BOTH = {
    "byol.tau_base": 0.996,
    "byol.projector.out": 256,
    "byol.projector.bias_before_bn": False,
    "model.zero_init_residual": True,
    "optimizer.warmup_epochs": 10,
    "optimizer.momentum": 0.9,
    "optimizer.exclude_from_lars": ["bias", "norm"],
    "optimizer.exclude_from_weight_decay": ["bias", "norm"],
    "augment.interpolation": "bicubic",
    "augment.views.0.flip": 0.5,
    "augment.views.0.jitter": {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
    "augment.views.0.grayscale": 0.2,
    "augment.views.0.blur.p": 1.0,
    "augment.views.0.solarize": None,
    "augment.views.1.blur.p": 0.1,
    "augment.views.1.blur.sigma": [0.1, 2.0],
    "augment.views.1.solarize.p": 0.2,
    "linear.epochs": 90,
    "linear.batch": 256,
    "linear.peak_lr": 0.2,
    "linear.momentum": 0.9,
    "linear.nesterov": True,
    "linear.weight_decay": 0.0,
    "linear.train_view.crop.scale": [0.08, 1.0],
    "linear.train_view.jitter": None,
}


@pytest.mark.parametrize("name", PAPER)
def test_recipes_hold_the_papers_values(name):
    recipe = load_recipe(name)
    for path, wanted in {**BOTH, **PAPER[name]}.items():
        found = recipe
        for key in path.split("."):
            found = found[int(key)] if isinstance(found, list) else found[key]
        assert found == wanted, path


AUTHORS = {
    "optimizer.lr_start_factor": 1e-8,
    "optimizer.lr_floor": 1e-8,
    "augment.quantize": "uint8",
    "linear.lr_floor": 1e-4,
}
OFFICIAL = {
    "model.padding": "same",
    "model.batch_norm.statistics": "per_view",
    "byol.projector.bias_before_bn": True,
    "byol.projector.bias_last": False,
    "byol.predictor.bias_before_bn": True,
    "byol.predictor.bias_last": False,
    "byol.average_update": "after_step",
    "byol.target_init": "independent",
    "optimizer.lr_in_momentum": False,
    "augment.antialias": False,
    "augment.jitter_operations": "official",
    "augment.views.0.blur.padding": "zero",
    "augment.views.1.blur.padding": "zero",
    "augment.views.1.solarize.threshold": 0.5,
    "linear.epochs": 80,
}


def preset(epochs, peak_lr, tau_base):
    return {"epochs": epochs, "optimizer.peak_lr": peak_lr, "optimizer.weight_decay": 1e-6, "byol.tau_base": tau_base}


# ADevillers/BYOL; deepmind-research/byol, configs/byol.py: base rates 0.45, 0.45, 0.3 times 4096 / 256.
OFFICIAL_IMAGENET = {**OFFICIAL, "augment.quantize": "none"}  # the paper's recipe rounds crops

VARIANTS = {
    "cifar10_authors": ("cifar10", {"epochs": 800, **AUTHORS}),
    "imagenet_authors": ("imagenet", AUTHORS),
    "cifar10_official": ("cifar10", {**OFFICIAL, "model.zero_init_residual": False}),
    "imagenet_official": ("imagenet", OFFICIAL_IMAGENET),
    "imagenet_official_40": ("imagenet", {**OFFICIAL_IMAGENET, **preset(40, 7.2, 0.97)}),
    "imagenet_official_100": ("imagenet", {**OFFICIAL_IMAGENET, **preset(100, 7.2, 0.99)}),
    "imagenet_official_300": ("imagenet", {**OFFICIAL_IMAGENET, **preset(300, 4.8, 0.99)}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_differ_from_the_papers_recipe_in_these_values_and_no_others(name):
    base, wanted = VARIANTS[name]
    before, after = flattened(load_recipe(base)), flattened(load_recipe(name))
    assert {key: value for key, value in after.items() if before[key] != value} == wanted
    assert before.keys() == after.keys()


def test_a_recipe_whose_base_is_missing_or_itself_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_module, "LIBRARY", Library(tmp_path, "recipe"))
    (tmp_path / "one.yaml").write_text("base: two\n")
    (tmp_path / "two.yaml").write_text("base: [one]\n")
    (tmp_path / "three.yaml").write_text("base: nowhere\nepochs: 3\n")
    (tmp_path / "four.yaml").write_text("- epochs\n")
    with pytest.raises(RecipeError, match="recipe one is its own base: one -> two -> one"):
        load_recipe("one")
    with pytest.raises(RecipeError, match="recipe three: its base 'nowhere' does not exist"):
        load_recipe("three")
    with pytest.raises(RecipeError, match="four"):
        load_recipe("four")


def test_the_two_views_of_a_recipe_crop_flip_and_jitter_alike():
    for name in PAPER:
        first, second = load_recipe(name)["augment"]["views"]
        for key in ("crop", "flip", "jitter", "grayscale"):
            assert first[key] == second[key]


def test_overrides_are_merged_deeply_and_lists_replaced():
    recipe = load_recipe("cifar10", {"optimizer": {"peak_lr": 1.0, "exclude_from_lars": []}})
    assert recipe["optimizer"]["peak_lr"] == 1.0
    assert recipe["optimizer"]["exclude_from_lars"] == []
    assert recipe["optimizer"]["momentum"] == 0.9
    assert load_recipe("cifar10")["optimizer"]["peak_lr"] == 2.0


def test_a_mapping_of_places_changes_elements_of_a_list():
    changed = load_recipe("cifar10", {"augment": {"views": {"1": {"flip": 0.1, "blur": None}}}})["augment"]["views"]
    views = load_recipe("cifar10")["augment"]["views"]
    assert changed == [views[0], {**views[1], "flip": 0.1, "blur": None}]
    with pytest.raises(RecipeError, match=r"override 'augment\.views\.2' names no recipe key"):
        load_recipe("cifar10", {"augment": {"views": {2: {"flip": 0.1}}}})


def test_a_number_in_exponent_notation_is_a_number():
    assert load_recipe("cifar10", {"optimizer": {"weight_decay": "1e-5"}})["optimizer"]["weight_decay"] == 1e-5


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"optimizer": {"peek_lr": 1}}, ["optimizer.peek_lr", "names no recipe key", "did you mean peak_lr"]),
        ({"optimizer": {"peak_lr": -1}}, ["optimizer.peak_lr is -1", "at least 0"]),
        ({"optimizer": {"peak_lr": "fast"}}, ["optimizer.peak_lr is 'fast'", "text", "number"]),
        ({"optimizer": {"warmup_epochs": 2000}}, ["warmup_epochs is 2000", "1000 epochs"]),
        ({"optimizer": {"lr_floor": 3.0}}, ["lr_floor is 3.0", "peak_lr"]),
        ({"model": {"backbone": "vgg"}}, ["model.backbone is 'vgg'", "resnet18"]),
        ({"model": 3}, ["model is 3", "keys with values"]),
        ({"epochs": 0}, ["epochs is 0", "at least 1"]),
        ({"epochs": True}, ["epochs is True", "whole number"]),
        ({"micro_batches": 3}, ["global_batch 512", "3 equal micro_batches"]),
        ({"byol": {"predictor": {"out": 128}}}, ["predictor.out is 128", "256"]),
        ({"byol": {"target_batch_norm": "running"}}, ["target_batch_norm", "average_buffers"]),
        ({"augment": {"views": []}}, ["augment.views"]),
        ({"augment": {"mean": [0.5]}}, ["augment.mean"]),
        ({"augment": {"jitter_operations": "official", "quantize": "uint8"}}, ["jitter_operations", "quantize: none"]),
        ({"linear": {"test": {"crop": 40}}}, ["linear.test.crop is 40", "36"]),
        (
            {"linear": {"train_view": {"crop": {"scale": [1.0, 0.5]}}}},
            ["train_view.crop.scale", "smaller number first"],
        ),
    ],
)
def test_a_wrong_override_is_named_in_one_line(overrides, words):
    with pytest.raises(RecipeError) as error:
        load_recipe("cifar10", overrides)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_byol_wants_two_views_and_odd_blur_kernels():
    recipe = load_recipe("cifar10")
    one_view = {**recipe, "augment": {**recipe["augment"], "views": recipe["augment"]["views"][:1]}}
    with pytest.raises(RecipeError, match="1 views, wanted 2"):
        check_recipe(one_view, "test")
    even = plain(recipe)
    even["augment"]["views"][1]["blur"]["kernel"] = 4
    with pytest.raises(RecipeError, match=r"views\.1\.blur\.kernel is 4"):
        check_recipe(even, "test")


def test_an_unknown_recipe_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match=r"'cifar' does not exist.*did you mean cifar10"):
        load_recipe("cifar")


def test_a_recipe_survives_the_command_line():
    recipe = load_recipe("imagenet")
    assert parse_recipe(canonical(recipe)) == recipe
    assert parse_recipe("imagenet") == recipe
    with pytest.raises(RecipeError, match="not valid JSON"):
        parse_recipe("{1")
    with pytest.raises(RecipeError, match="unknown key 'extra'"):
        parse_recipe(canonical({**recipe, "extra": 1}))


def test_the_fingerprint_follows_training_and_revision_but_not_the_evaluation():
    base = fingerprint(load_recipe("cifar10"), 1)
    assert fingerprint(load_recipe("cifar10", {"linear": {"epochs": 100}}), 1) == base
    assert fingerprint(load_recipe("cifar10", {"optimizer": {"peak_lr": 1.9}}), 1) != base
    assert fingerprint(load_recipe("cifar10"), 2) != base
    assert "linear" not in pretraining_part(load_recipe("cifar10"))


# Of commit 5741ae6, before any key had a default. Where one moves, what was trained under the old one is not continued.
FINGERPRINTS = {
    "cifar10": "2f8662c124f8aa2d656bb0e80bb66e4f1ef74c996ebae825af75fcc42a31273d",
    "cifar10_authors": "ee450f1d11e3a915e90246c27aef4c13aa5351bcdc1bbdb1d1070e711f0e651e",
    "cifar10_official": "40fec5653c23986cfd274bcc5ef1bc1c737599fb96c95c92094faeb08a1bd44a",
    "digits": "8e91bbca5853022592cfb0c607dcfce89b6b6dffaa8329a59e4c7e02c71666cf",
    "imagenet": "14b91c6420054ca5859818a899cf7c4815331dd7b98c2de7c7d72879f7563d02",
    "imagenet_authors": "9e25f8062b0f17323706ba032cfcdd562abbf1b872dfd6fd0c8ea2d71a37b1de",
    "imagenet_official": "473111a0c4118ae2d59a33bf59de2c53574d2be075935d7cd6f3213168de2589",
    "imagenet_official_100": "bb5894e754dd422d95f5d4b635c94ea0d08d97f2bf6a17216445542b214473af",
    "imagenet_official_300": "03e0c78e6e6fa1935ee2dfaa987e442389cb826b23b8711325b45ac54bf7b3d0",
    "imagenet_official_40": "505d98fabf5c5c189b673cd8f3efa5df7a832169153c2602ee47efd7b9b4a3ff",
}
# Of the methods beside BYOL, when their recipes were written.
FINGERPRINTS |= {
    "barlow_twins_cifar10_solo": "b25dbe02dd4c97cd840bd9bd9b85f590770c000695bce9cc713736b82d97fdcc",
    "barlow_twins_imagenet": "6b95cf655273c9126e7a84274050b743d92805284f76437b942d2b9c9f80bf3b",
    "barlow_twins_digits": "669dcc67acdaa43e46472604869d765a25b362e65d42ee8fe63800bf00252e2c",
    "moco_v3_cifar10_solo": "e195e43b521e73a4fc2f8ac51fefa754617740756e049eb11f748978ddb8240c",
    "moco_v3_imagenet": "195f68170b8823fbeb98e2275ff22e57028b6a13d47c026d81d73176ac98d4d4",
    "moco_v3_vit_small_imagenet": "f5178ef9236f6c37f9a89e4e7a396beb27a2cd66890d9f1c908f9a88850b5b2a",
    "moco_v3_digits": "f6b393234bca47d1e085f731004333bb1f513ead017ad618bab28209745b730c",
    "simclr_digits": "77d5e39cd5b2c13bc6698e4b49c8cc852a82773916c2a372eb1ab7dee2b0fbc7",
    "simsiam_cifar10": "0e860a064eb4bd47739ea68f71cd61c8679ff3f0e235cae8c769ceb25bb15677",
    "simsiam_cifar10_solo": "37b81251ad112df9f883e824bfb6dd127c592f78d9da9d3c443a5fa0823bd8fb",
    "simsiam_imagenet": "82c9dca695a001b8bf50f120cb493eaabb5ddd3f8dd43f64021a43c0619f02b7",
    "simsiam_digits": "7318e64696e16c73e22fcfb9c4e0afc6762e437ee73e77ce3de2ac0921126f2f",
    "vicreg_cifar10_solo": "a4d4a9b2af2b0f451ee3ae68907047f84012ffc7c3bc572c6b67a1f30ab18846",
    "vicreg_imagenet": "7b58474fd0fb8baf83b06d10c5f15cbffd09de7acd984603fcb888320d4e583e",
    "vicreg_digits": "4c61d1f3806becc72043b274d56bdb84517028815939cf111869d949fd72a1b7",
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_a_recipe_keeps_its_fingerprint(name):
    assert fingerprint(load_recipe(name), 1) == FINGERPRINTS[name]


@pytest.mark.parametrize("name", ["cifar10", "digits", "imagenet"])
def test_a_key_that_came_later_leaves_older_runs_their_name(name):
    recipe = load_recipe(name)
    assert recipe["model"]["padding"] == "symmetric"
    assert "padding" not in pretraining_part(recipe)["model"]
    older = json.loads(canonical(pretraining_part(recipe)))
    assert check_recipe({**older, "linear": recipe["linear"]}, "an older recipe") == recipe
    assert fingerprint(load_recipe(name, {"model": {"padding": "same"}}), 1) != fingerprint(recipe, 1)


def test_an_unknown_method_is_named_before_its_block():
    with pytest.raises(RecipeError, match=r"^method is 'biol', which does not exist; did you mean byol\?$"):
        load_recipe("digits", {"method": "biol", "biol": {}})


@pytest.mark.parametrize("value", [3, None, [3], "mine.py"])
def test_extensions_of_a_recipes_file_are_a_list_of_files(value):
    text = json.dumps({**json.loads(canonical(load_recipe("digits"))), "extensions": value})
    with pytest.raises(RecipeError, match=r"--recipe: extensions is .*, wanted a list of files$"):
        parse_recipe(text)


def test_numbers_have_the_type_of_their_key():
    """2 and 2.0 are one learning rate, and 1e2 epochs are 100."""
    assert fingerprint(load_recipe("cifar10", {"optimizer": {"peak_lr": 2}}), 1) == fingerprint(
        load_recipe("cifar10"), 1
    )
    epochs = load_recipe("cifar10", {"epochs": "1e2"})["epochs"]
    assert epochs == 100 and isinstance(epochs, int)
    with pytest.raises(RecipeError, match=r"epochs is 1\.5"):
        load_recipe("cifar10", {"epochs": 1.5})


def test_differences_name_key_wanted_and_found():
    lines = differences(load_recipe("cifar10", {"optimizer": {"peak_lr": 1.0}}), load_recipe("cifar10"))
    assert lines == ["optimizer.peak_lr: wanted 1.0, found 2.0"]

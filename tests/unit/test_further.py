"""Linear classifiers trained beside the headline's: it does not notice them, and they do what they would do alone."""

import json
import math
import subprocess

import pandas as pd
import pytest
import torch

from many_ranks import on_ranks
from runs import StopAfter, evaluate, evaluation, on_cpu
from selfsup.augment import centre_view
from selfsup.engine.distributed import Ranks
from selfsup.evaluation.encoder import encoder_card, save_encoder
from selfsup.models import initial_backbone
from selfsup.protocols import evaluation_of
from selfsup.recipe import RecipeError, canonical, evaluation_part, load_recipe, merge
from tiny import TINY

OTHERS = [{"peak_lr": 0.05, "initial_weights": 0}, {"peak_lr": 1.0, "initial_weights": 3}]


def with_further(recipe: dict, further: list[dict], **linear) -> dict:
    return merge(recipe, {"linear": {**linear, "further": further}})


def frozen(recipe: dict):
    return initial_backbone(recipe, 0).eval().requires_grad_(False)


def figures(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in rows]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_headline_has_the_same_bits_with_and_without_further_classifiers(
    tiny_store, tiny_recipe, tmp_path, precision
):
    found = []
    for further in ([], OTHERS):
        recipe = with_further(tiny_recipe, further)
        one = evaluation(frozen(recipe), tiny_store, recipe, compute=on_cpu(precision=precision))
        evaluate(one, tmp_path / str(len(further)))
        found.append((figures(one.rows), [value.tolist() for value in one._classifier.state_dict().values()]))
        assert len(one.further_rows) == len(further)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "linear", [{}, {"nesterov": False, "weight_decay": 0.01, "lr_floor": 0.02, "drop_last": False}]
)
def test_a_further_classifier_is_what_its_rate_gives_as_the_headlines(tiny_store, tiny_recipe, tmp_path, linear):
    """Weights to 1e-5 of the largest, float32: the wide product may add up in another order."""
    further = [{**one, "initial_weights": 0} for one in OTHERS]
    recipe = with_further(tiny_recipe, further, **linear)
    wide = evaluation(frozen(recipe), tiny_store, recipe)
    evaluate(wide, tmp_path / "wide")
    for number, one in enumerate(further):
        alone = evaluation(frozen(recipe), tiny_store, with_further(recipe, [], peak_lr=one["peak_lr"]))
        evaluate(alone, tmp_path / str(number))
        wanted, weight = alone._classifier.weight, wide._further.state_dict()["weight"][number]
        torch.testing.assert_close(weight, wanted.detach(), rtol=0, atol=1e-5 * wanted.abs().max().item())
        assert wide.further_rows[number] == {**one, "top1": alone.rows[-1]["top1"], "top5": alone.rows[-1]["top5"]}


def test_initial_weights_are_drawn_by_number(tiny_store, tiny_recipe):
    further = [{"peak_lr": 0.1, "initial_weights": number} for number in (0, 1, 2, 1)]
    recipe = with_further(tiny_recipe, further)
    one = evaluation(frozen(recipe), tiny_store, recipe)
    first, second, third, again = one._further.state_dict()["weight"]
    assert first.equal(one._classifier.weight) and second.equal(again)
    assert not second.equal(first) and not second.equal(third)


@pytest.mark.parametrize("steps", [3, 5])
def test_a_stopped_and_continued_evaluation_of_several_classifiers_equals_an_uninterrupted_one(
    tiny_store, tiny_recipe, tmp_path, steps
):
    recipe, compute = with_further(tiny_recipe, OTHERS), on_cpu(precision="bf16")
    whole, stopped, continued = (evaluation(frozen(recipe), tiny_store, recipe, compute=compute) for _ in range(3))
    evaluate(whole, tmp_path / "whole")
    evaluate(stopped, tmp_path / "parts", StopAfter(steps - 1))
    assert stopped.step == steps and stopped.further_rows == []
    continued.resume(tmp_path / "parts" / "partial")
    evaluate(continued, tmp_path / "parts")
    assert (figures(continued.rows), continued.further_rows) == (figures(whole.rows), whole.further_rows)
    for name, value in whole._further.state_dict().items():
        assert value.equal(continued._further.state_dict()[name]), name


def test_a_further_classifier_that_diverges_has_no_figures_and_disturbs_nobody(tiny_store, tiny_recipe, tmp_path):
    wild = [OTHERS[0], {"peak_lr": 1e60, "initial_weights": 0}, OTHERS[1]]
    found = []
    for further in (wild, [wild[0], {**wild[1], "peak_lr": 0.1}, wild[2]]):
        recipe = with_further(tiny_recipe, further)
        one = evaluation(frozen(recipe), tiny_store, recipe)
        evaluate(one, tmp_path / str(len(found)))
        found.append((figures(one.rows), one.further_rows))
    (rows, further), (tame_rows, tame) = found
    assert math.isnan(further[1]["top1"]) and math.isnan(further[1]["top5"]) and tame[1]["top5"] == 100
    assert (rows, further[0], further[2]) == (tame_rows, tame[0], tame[2])


def _evaluated(ranks: Ranks, store, folder) -> tuple:
    recipe = with_further(load_recipe("digits", TINY), OTHERS, drop_last=False, batch=14)  # 43 = 3 x 14 + 1
    one = evaluation(frozen(recipe), store, recipe, compute=on_cpu(ranks, threads=1, precision="bf16"))
    evaluate(one, folder / str(ranks.size))
    return figures(one.rows), one.further_rows, [value.tolist() for value in one._further.state_dict().values()]


def test_ranks_evaluate_as_one_does(tiny_store, tmp_path):
    """Two ranks; in an epoch's last batch, of one image, the second has none. Equal bits on both, 1e-5 beside one's."""
    rows, further, weights = _evaluated(Ranks(), tiny_store, tmp_path)
    first, second = on_ranks(_evaluated, 2, tiny_store, tmp_path)
    assert first == second
    assert further == first[1]
    for row, other in zip(rows, first[0], strict=True):
        assert other == {**row, "train_loss": pytest.approx(row["train_loss"], rel=1e-5)}
    for one, other in zip(weights, first[2], strict=True):
        torch.testing.assert_close(torch.tensor(other), torch.tensor(one), rtol=1e-4, atol=1e-5)


def test_recipes_from_before_the_key_have_the_same_evaluation():
    recipe = load_recipe("cifar10")
    assert recipe["linear"]["further"] == [] and "further" not in evaluation_part(recipe)["linear"]
    assert load_recipe("cifar10", {"linear": {"further": [{"peak_lr": 1}]}})["linear"]["further"] == [
        {"peak_lr": 1.0, "initial_weights": 0}
    ]
    with pytest.raises(RecipeError, match=r"linear.further.1.peak_lr is 1e-05, below the lr_floor of 0.0001"):
        load_recipe("cifar10_authors", {"linear": {"further": [{"peak_lr": 1}, {"peak_lr": 1e-5}]}})


def test_the_script_writes_further_csv_and_takes_it_away(repository, tiny_store, tiny_recipe, tmp_path, starter):
    encoder = tmp_path / "encoder.safetensors"
    save_encoder(encoder, frozen(tiny_recipe), encoder_card("untrained", tiny_recipe, 0))

    def script(recipe: dict) -> str:
        told = [starter, "workflow/scripts/linear_eval.py", "--recipe", canonical(recipe), "--device", "cpu"]
        told += ["--data", tiny_store.folder, "--encoder", encoder, "--output", tmp_path / "linear"]
        done = subprocess.run([*map(str, told)], cwd=repository, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = script(with_further(tiny_recipe, OTHERS, test_precision="compute"))
    assert "of 19 predictions differ from those of a test forward in fp32" in told
    further = pd.read_csv(tmp_path / "linear" / "further.csv")
    assert list(further.columns) == ["peak_lr", "initial_weights", "top1", "top5"]
    assert further["peak_lr"].tolist() == [0.05, 1.0] and further["top5"].tolist() == [100, 100]
    assert "further" not in json.dumps(json.loads(encoder.with_suffix(".json").read_text())["evaluations"])
    assert "predictions differ" not in script(tiny_recipe)
    assert not (tmp_path / "linear" / "further.csv").exists()


def choosing(recipe: dict, **linear) -> dict:
    return with_further(recipe, OTHERS, held_out=9, **linear)


def test_held_out_images_train_nothing_and_choose_the_best_classifier(tiny_store, tiny_recipe, tmp_path):
    """Against each classifier's own logits on the images that no batch has."""
    one = evaluation(frozen(tiny_recipe), tiny_store, choosing(tiny_recipe, drop_last=False))
    seen = {int(index) for step in range(one.steps_per_epoch) for index in one.batches.global_indices(step)[1]}
    held_out = sorted(set(range(43)) - seen)
    assert len(held_out) == 9
    evaluate(one, tmp_path)
    pictures = centre_view(tiny_recipe, map(tiny_store.train.image, held_out))
    features, labels = one._encoder(pictures), torch.from_numpy(tiny_store.train.labels[held_out])
    weights = [one._classifier.weight, *one._further.state_dict()["weight"]]
    biases = [one._classifier.bias, *one._further.state_dict()["bias"]]
    logits = [features @ weight.T + bias for weight, bias in zip(weights, biases, strict=True)]
    wanted = [100 * float((each.argmax(1) == labels).float().mean()) for each in logits]
    assert [row["validation_top1"] for row in one.further_rows] == pytest.approx(wanted, rel=1e-6)
    assert [row["peak_lr"] for row in one.further_rows] == [0.2, 0.05, 1.0]
    best = one.further_rows[max(range(3), key=lambda number: wanted[number])]
    found = one.figures()
    assert (found["top1"], found["chosen_lr"]) == (best["top1"], best["peak_lr"]) and found["n_held_out"] == 9
    assert one.further_rows[0]["top1"] == one.rows[-1]["top1"]


def test_of_equally_good_classifiers_the_first_is_chosen_and_a_diverged_one_never(tiny_store, tiny_recipe):
    one = evaluation(frozen(tiny_recipe), tiny_store, choosing(tiny_recipe))
    validation = (30.0, 40.0, math.nan, 40.0)
    one.further_rows = [
        {"peak_lr": number, "initial_weights": 0, "top1": number, "top5": 100.0, "validation_top1": top1}
        for number, top1 in enumerate(validation)
    ]
    assert one.figures()["chosen_lr"] == 1


def test_an_evaluation_that_chooses_goes_on_after_a_stop(tiny_store, tiny_recipe, tmp_path):
    recipe = choosing(tiny_recipe)
    whole, stopped, continued = (evaluation(frozen(recipe), tiny_store, recipe) for _ in range(3))
    evaluate(whole, tmp_path / "whole")
    evaluate(stopped, tmp_path / "parts", StopAfter(4))
    assert 0 < stopped.step < whole.step
    continued.resume(tmp_path / "parts" / "partial")
    evaluate(continued, tmp_path / "parts")
    assert (continued.further_rows, continued.figures()) == (whole.further_rows, whole.figures())


def test_there_must_be_something_to_choose_from(tiny_recipe):
    with pytest.raises(RecipeError, match=r"linear.held_out is 9, but further is empty"):
        load_recipe("digits", {"linear": {"held_out": 9}})
    words = load_recipe("digits", {"linear": {"held_out": 9, "further": OTHERS}}).linear.protocol(tiny_recipe)
    assert words.endswith("last epoch, best of 3 on 9 of the training images")


def test_the_original_papers_protocol_has_its_five_rates():
    linear = evaluation_of("official", "linear_official", {}, load_recipe("imagenet"), "imagenet").settings
    assert [linear.peak_lr, *(one.peak_lr for one in linear.further)] == [0.4, 0.3, 0.2, 0.1, 0.05]
    assert (linear.epochs, linear.batch, linear.held_out) == (80, 1024, 10009)

"""Measures by which papers compare on a data set: from store.json into metrics.csv and the tables."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from frozen import judged_of, run, settings_of, task_of
from runs import TINY_TUNING, evaluate, fine_tuning
from selfsup.data.store import PackedStore, StoreWriter
from selfsup.errors import PermanentError
from selfsup.evaluation.fine_tune_settings import FineTuneSettings
from selfsup.evaluation.metrics import result_files
from selfsup.evaluation.task import build_task
from selfsup.protocols import read_evaluation
from selfsup.recipe import Recipe
from selfsup.settings.registries import SOURCES
from selfsup.tables.layouts import to_latex, to_markdown
from selfsup.tables.rows import Row, make_table, read_published

MEAN_PER_CLASS = "mean per class"


def told(store: PackedStore, folder, **notes) -> PackedStore:
    """A copy of a store whose store.json says more."""
    shutil.copytree(store.folder, folder)
    path = folder / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | notes))
    return PackedStore(folder)


def metrics_of(task, name: str) -> pd.Series:
    evaluation = replace(read_evaluation("a test", name, task.settings, "tiny"), name="mine")
    card = {"network": "online", "encoder_sha256": "abc", "recipe": task.judged.recipe}
    files = result_files(
        evaluation, task.figures(), task.rows, task.further_rows, card, task.judged.recipe, task.judged.store, 0
    )
    return pd.read_csv(io.StringIO(files["metrics.csv"])).iloc[0]


def linear_task(recipe, store, folder):
    recipe = Recipe.of(recipe)
    task = build_task("linear", judged_of(recipe, store), recipe.linear, {"of": "a test"})
    evaluate(task, folder)
    return task


@pytest.mark.parametrize("measure", ["top-1", MEAN_PER_CLASS])
@pytest.mark.parametrize("name", ["knn", "logistic"])
def test_the_headline_is_by_the_datasets_measure(tiny_recipe, tiny_store, tmp_path, name, measure):
    store = told(tiny_store, tmp_path / "store", measure=measure)
    found = metrics_of(run(name, judged_of(tiny_recipe, store), tmp_path / name), name)
    assert found["measure"] == measure and found["top1"] != found["mean_per_class"]
    assert found["figure"] == found["top1" if measure == "top-1" else "mean_per_class"]


def test_the_linear_evaluations_mean_per_class_is_a_restatement_s(tiny_recipe, tiny_store, tmp_path):
    """Counted, so exactly."""
    store = told(tiny_store, tmp_path / "store", measure=MEAN_PER_CLASS)
    task = linear_task(tiny_recipe, store, tmp_path / "linear")
    with torch.no_grad():
        predicted = task._classifier(task._test_features).numpy().argmax(1)
    truth = store.test.labels
    wanted = 100 * np.mean([(predicted[truth == label] == label).mean() for label in np.unique(truth)])
    found = metrics_of(task, "linear")
    assert found["figure"] == found["mean_per_class"] == pytest.approx(wanted) and found["measure"] == MEAN_PER_CLASS


def test_on_a_data_set_of_top_1_the_linear_evaluation_has_the_columns_that_it_had(tiny_recipe, tiny_store, tmp_path):
    task = linear_task(tiny_recipe, tiny_store, tmp_path / "linear")
    assert "mean_per_class" not in {*task.rows[0], *task.figures()}
    found = metrics_of(task, "linear")
    assert found["figure"] == found["top1"] and found["measure"] == "top-1"


def task_by_name(name, recipe, store):
    if name == "linear":
        return build_task(name, judged_of(recipe, store), Recipe.of(recipe).linear, {})
    return task_of(name, judged_of(recipe, store))


@pytest.mark.parametrize("name", ["linear", "knn"])
def test_a_multi_label_store_is_refused_in_one_line(tiny_recipe, tmp_path, name):
    random = np.random.default_rng(0)
    writer = StoreWriter(tmp_path / "store", ["ant", "bee", "cat"])
    for split in ("train", "test"):
        images = random.integers(0, 256, (9, 3, 12, 10), np.uint8)
        writer.write_raw(split, images, random.integers(-1, 2, (9, 3)))
    writer.note(multi_label=True, measure="11-point mAP")
    writer.finish()
    store = PackedStore(tmp_path / "store")
    assert store.multi_label and store.train.labels.shape == (9, 3)
    with pytest.raises(PermanentError, match=f"may be of several classes, which the task {name} cannot handle"):
        task_by_name(name, tiny_recipe, store)


def test_a_measure_that_a_task_does_not_give_is_refused_before_any_work(tiny_recipe, tiny_store, tmp_path):
    store = told(tiny_store, tmp_path / "store", measure="11-point mAP")
    with pytest.raises(PermanentError, match="its measure is 11-point mAP, which the task knn cannot compute"):
        task_by_name("knn", tiny_recipe, store)


def test_the_publishers_validation_images_choose_the_strength(tiny_recipe, tiny_store, tmp_path):
    plain = run("logistic", judged_of(tiny_recipe, tiny_store), tmp_path / "plain")
    store = told(tiny_store, tmp_path / "store", validation=11)
    task = run("logistic", judged_of(tiny_recipe, store), tmp_path / "published")
    train, validation = task._split()
    assert train.tolist() == list(range(32)) and validation.tolist() == list(range(32, 43))
    assert task.figures()["n_validation"] == 11 and "n_validation" not in plain.figures()
    assert [row["objective"] for row in task.rows] != [row["objective"] for row in plain.rows]


def test_held_out_images_choose_a_fine_tuning_by_the_dataset_s_measure(tiny_recipe, tiny_store, tmp_path):
    """Of the other measure, another point is the best."""
    found = [{"top1": top1, "mean_per_class": mean} for top1, mean in ((50.0, 20.0), (40.0, 30.0), (30.0, 30.0))]
    found.append(dict.fromkeys(("top1", "top5", "mean_per_class"), float("nan")))
    by_class = told(tiny_store, tmp_path / "store", measure=MEAN_PER_CLASS)
    for store, place in ((tiny_store, 0), (by_class, 1)):
        task = fine_tuning(judged_of(tiny_recipe, store).encoder, store, tiny_recipe)
        task._found, task.rows = found, [{"peak_lr": 0.1, "weight_decay": 0.0, "epochs": 1}]
        assert task.chosen == task.settings.grid[place]
        figures = task.figures()
        assert [figures[f"validation_{key}"] for key in found[place]] == list(found[place].values())
    task = fine_tuning(judged_of(tiny_recipe, by_class).encoder, by_class, tiny_recipe)
    evaluate(task, tmp_path)
    assert {"validation_top1", "validation_mean_per_class"} <= set(task.further_rows[0])


def test_validation_images_choose_a_strength_by_the_dataset_s_measure(tiny_recipe, tiny_store, tmp_path):
    store = told(tiny_store, tmp_path / "store", measure=MEAN_PER_CLASS)
    task = run("logistic", judged_of(tiny_recipe, store), tmp_path / "logistic")
    figures = [row["validation_mean_per_class"] for row in task.rows]
    assert task.figures()["validation_mean_per_class"] == max(figures) and "validation_top1" not in task.rows[0]
    _, validation = task._split()
    truth, features = store.train.labels[validation], task._features.train.rows(validation)
    predicted = task._now.logits(features).argmax(dim=1).numpy()  # of the last strength
    wanted = 100 * np.mean([(predicted[truth == label] == label).mean() for label in np.unique(truth)])
    assert figures[-1] == pytest.approx(wanted)


def test_only_where_a_choice_is_by_another_measure_are_results_of_older_versions_made_again():
    for name, settings in {"fine_tune": FineTuneSettings(**TINY_TUNING), "logistic": settings_of("logistic")}.items():
        assert settings.made_from("top-1") == settings.made_from("11-point mAP") == settings.made_from("") == {}, name
        assert settings.made_from(MEAN_PER_CLASS) == {"chosen_by": MEAN_PER_CLASS}
    assert settings_of("knn").made_from(MEAN_PER_CLASS) == {}


# The tables.

LIKE_A_PAPER = {
    "method": "byol",
    "backbone": "resnet50",
    "width": 64,
    "stem": "7 x 7, stride 2, max-pool",
    "epochs": 1000,
    "global_batch": 4096,
    "protocol": "logistic regression",
    "settings": "",
    "labels": 100,
}


def row_of(folder, dataset="oxford_pets", task="logistic", **figures) -> Row:
    folder.mkdir()
    numbers = {"top1": 88.0, "top5": 99.0, "n_test": 3669, "n_train": 3680, "task": task}
    line = {**numbers, **LIKE_A_PAPER, "encoder_sha256": "abc", "numerics_changes": 0, **figures}
    pd.DataFrame([line]).to_csv(folder / "metrics.csv", index=False)
    labels = line["labels"]
    return Row(
        "mine", dataset, 1000, 4096, [0], [folder / "metrics.csv"], False, evaluation="on", task=task, labels=labels
    )


def test_a_table_shows_the_figure_by_the_datasets_measure(tmp_path):
    frame = make_table("mine", [row_of(tmp_path / "a", measure=MEAN_PER_CLASS, figure=86.25)])
    assert set(frame["implementation"]) == {"Grill et al. 2020", "This work"}  # of the same method
    head, _, *lines = to_markdown(frame).splitlines()[:6]
    assert [one.strip() for one in head.split("|")[1:3]] == ["Top-1 / Top-5 (%)", "oxford_pets, mean per class"]
    assert [line.split("|")[2].split("[")[0].strip() for line in lines[:2]] == ["90.40", "86.25"]
    assert r"This work & 86.25 &  \\" in to_latex(frame)


def test_metrics_of_an_older_version_are_of_top_1(tmp_path):
    (ours,) = make_table("mine", [row_of(tmp_path / "a", dataset="mine")]).to_dict("records")
    assert (ours["measure"], ours["figure"], ours["top1"]) == ("top-1", 88.0, 88.0)


@pytest.mark.parametrize(
    ("task", "labels", "wanted"),
    [("logistic", 100, 75.3), ("fine_tune", 100, 88.5), ("knn", 100, None), ("fine_tune", 10, None)],
)
def test_published_figures_come_along_with_their_task_and_share_of_labels(tmp_path, task, labels, wanted):
    frame = make_table("mine", [row_of(tmp_path / "a", dataset="food101", task=task, labels=labels)])
    found = frame.loc[frame["implementation"] == "Grill et al. 2020", "figure"].tolist()
    assert found == ([wanted] if wanted else [])


def test_the_few_labels_of_a_paper_stand_in_the_columns_of_ours(tmp_path):
    rows = [
        replace(
            row_of(tmp_path / f"{share}", dataset="imagenet", task="fine_tune", labels=share), evaluation=f"p{share}"
        )
        for share in (1, 10)
    ]
    frame = make_table("few_labels", rows)
    head, _, *lines = to_markdown(frame).splitlines()[:8]
    titles = [one.strip() for one in head.split("|")[2:-1]]
    grill = next(line for line in lines if line.startswith("| Grill")).split("|")
    assert grill[2 + titles.index("ImageNet, p1")].strip().startswith("53.20 / 78.40")
    assert grill[2 + titles.index("ImageNet, p10")].strip().startswith("68.80 / 89.00")


def test_many_datasets_stand_below_each_other(tmp_path):
    frame = make_table("transfer", [row_of(tmp_path / "a", measure=MEAN_PER_CLASS, figure=86.25)])
    head, _, *lines = to_markdown(frame).splitlines()
    assert [one.strip() for one in head.split("|")[2:-1]] == ["Grill et al. 2020", "Chen et al. 2020", "This work"]
    (pets,) = [line for line in lines[:24] if line.startswith("| oxford_pets, on, mean per class")]
    assert [one.split("[")[0].strip() for one in pets.split("|")[2:-1]] == ["90.40", "83.60", "86.25"]
    assert sum("not run" in line for line in lines[:24]) == 11


def test_a_verdict_is_by_the_datasets_measure(tmp_path, monkeypatch):
    from selfsup.tables import rows

    monkeypatch.setattr(rows, "COMPARED_WITH", "Grill et al. 2020")
    reference = read_published()
    reference = reference[(reference["dataset"] == "oxford_pets") & (reference["task"] == "logistic")].iloc[0]
    like = {key: reference[key] for key in ("protocol", "settings")}
    of_this = {"measure": MEAN_PER_CLASS, "figure": 89.5}
    found = make_table("mine", [row_of(tmp_path / "a", **like, **of_this)]).iloc[-1]
    assert (found["verdict"], found["reference_top1"]) == ("agrees", 90.4)
    assert found["difference"] == pytest.approx(-0.9)
    found = make_table("mine", [row_of(tmp_path / "b", **like)]).iloc[-1]
    assert found["verdict"] == "not comparable"
    assert found["verdict_reason"] == f"measure top-1, the reference {MEAN_PER_CLASS}"


def test_published_rows_tell_all_that_a_figure_depends_on():
    published = read_published()
    transfer = published[published["table"] == "transfer"]
    assert len(transfer) == 12 * 2 * 2
    assert not transfer[["figure", "source", "n_train", "n_test", "protocol"]].isna().any(axis=None)
    assert (transfer["top1"].isna() == (transfer["measure"] != "top-1")).all()
    for one in transfer.to_dict("records"):
        source = SOURCES[one["dataset"]]
        assert (one["n_train"], one["n_test"], one["measure"]) == (*source.counts[:2], source.measure)

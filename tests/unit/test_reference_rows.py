"""Published figures of several methods: each run is judged beside its own method's, and tables show no others."""

import pandas as pd
import pytest
from test_evaluation import metrics_file

from selfsup.evaluation.metrics import keys_of as figures_keys
from selfsup.protocols import linear_evaluation
from selfsup.recipe import load_recipe
from selfsup.reports.plan import paper_gpu_hours
from selfsup.tables.figure_keys import differences, figure_keys, method_in_words
from selfsup.tables.layouts import to_latex, to_markdown
from selfsup.tables.rows import REFERENCE, Row, make_table, read_table, to_csv

PUBLISHED = pd.read_csv(REFERENCE).set_index(["implementation", "dataset"])
THREE = {"simclr": {"projector": {"layers": [2048, 2048, 128]}}}
IMAGES = {"cifar10": (50_000, 10_000), "imagenet": (1_281_167, 50_000)}
OF_RECIPES = [
    ("simclr_cifar10_authors", {}, "Devillers & Lefort, SimCLR", 91.70, 99.71),
    ("simclr_cifar10_authors", THREE, "Devillers & Lefort, SimCLR, 3 layers", 91.93, 99.79),
    ("simclr_imagenet_authors", {}, "Devillers & Lefort, SimCLR", 70.78, 90.36),
    ("simclr_imagenet_authors", THREE, "Devillers & Lefort, SimCLR, 3 layers", 71.84, 90.53),
    ("equimod_simclr_cifar10", {}, "Devillers & Lefort, SimCLR + EquiMod", 92.79, 99.78),
    ("equimod_simclr_imagenet", {}, "Devillers & Lefort, SimCLR + EquiMod", 72.30, 90.84),
    ("equimod_byol_cifar10", {}, "Devillers & Lefort, BYOL + EquiMod", 91.57, 99.71),
    ("equimod_byol_imagenet", {}, "Devillers & Lefort, BYOL + EquiMod", 73.22, 91.26),
]
BASELINES = {
    ("Devillers & Lefort, EquiMod's SimCLR", "cifar10"): [90.96, 99.73],
    ("Devillers & Lefort, EquiMod's SimCLR", "imagenet"): [71.57, 90.48],
    ("Devillers & Lefort, EquiMod's BYOL", "cifar10"): [90.44, 99.62],
    ("Devillers & Lefort, EquiMod's BYOL", "imagenet"): [74.03, 91.51],
    ("Chen et al., SimCLR", "imagenet"): [69.3, 89.0],
    ("solo-learn, SimCLR", "cifar10"): [90.74, 99.75],
}

# By recipe, figures of each method's own authors and of solo-learn: top-1 and, where it is told, top-5.
OF_OTHERS = {
    "simsiam_imagenet": ("Chen & He, SimSiam", 68.1, None),
    "simsiam_cifar10": ("Chen & He, SimSiam", 91.8, None),
    "simsiam_cifar10_solo": ("solo-learn, SimSiam", 90.51, 99.72),
    "barlow_twins_imagenet": ("Zbontar et al., Barlow Twins", 73.5, 91.0),
    "barlow_twins_cifar10_solo": ("solo-learn, Barlow Twins", 92.10, 99.73),
    "vicreg_imagenet": ("Bardes et al., VICReg", 73.2, None),
    "vicreg_cifar10_solo": ("solo-learn, VICReg", 92.07, 99.74),
    "moco_v3_imagenet": ("Chen et al., MoCo v3, 100 epochs", 68.9, None),
    "moco_v3_vit_small_imagenet": ("Chen et al., MoCo v3, ViT-S", 73.2, None),
    "moco_v3_cifar10_solo": ("solo-learn, MoCo v3", 93.10, 99.80),
}
LONGER = {300: 72.8, 1000: 74.6}  # MoCo v3's ResNet-50


def keys_of(name: str, overrides: dict) -> dict:
    """What an evaluation of this recipe's encoder writes into metrics.csv, beside its figures."""
    recipe = load_recipe(name, overrides)
    n_train, n_test = IMAGES["imagenet" if "imagenet" in name else "cifar10"]
    card = {"recipe": recipe, "training": {"epoch": float(recipe["epochs"])}}
    keys = figures_keys(linear_evaluation(recipe, "x"), card, recipe, n_train)
    return {**keys, "n_test": n_test, "protocol": recipe.linear.protocol(recipe)}


def judged(tmp_path, top1: float, dataset="cifar10", table="mine", **keys) -> pd.DataFrame:
    file = metrics_file(tmp_path / "metrics", top1, **keys)
    return make_table(table, [Row("mine", dataset, 800, 512, [0], [file], False)])


@pytest.mark.parametrize(("name", "overrides", "implementation", "top1", "top5"), OF_RECIPES)
def test_the_authors_recipes_have_the_keys_of_their_figures(name, overrides, implementation, top1, top5, tmp_path):
    ours, dataset = keys_of(name, overrides), "imagenet" if "imagenet" in name else "cifar10"
    theirs = PUBLISHED.loc[(implementation, dataset)]
    assert differences(ours, theirs.to_dict()) == [] and [theirs["top1"], theirs["top5"]] == [top1, top5]
    line = judged(tmp_path, top1 + 0.5, dataset, **ours).iloc[-1]
    where = f"+0.50 points from {implementation}, tolerance 1.5"
    assert (line["verdict"], line["verdict_reason"], line["reference_top1"]) == ("agrees", where, top1)


def test_other_published_figures_are_told_and_marked():
    for place, wanted in BASELINES.items():
        assert PUBLISHED.loc[place, ["top1", "top5"]].tolist() == wanted
    assert PUBLISHED.loc[("Chen et al., SimCLR", "cifar10"), ["backbone", "top1"]].tolist() == ["resnet50", 94.0]
    assert "another protocol (online probe)" in PUBLISHED.loc[("solo-learn, SimCLR", "cifar10"), "source"]


@pytest.mark.parametrize("name", OF_OTHERS)
def test_other_methods_figures_have_the_keys_of_their_recipes_and_protocols_of_their_own(name, tmp_path):
    """So that a table shows them beside a run of that recipe, and gives no verdict by them."""
    (implementation, top1, top5), ours = OF_OTHERS[name], keys_of(name, {})
    dataset = "imagenet" if "imagenet" in name else "cifar10"
    theirs = PUBLISHED.loc[(implementation, dataset)]
    assert theirs["top1"] == top1 and (theirs["top5"] == top5 or (top5 is None and pd.isna(theirs["top5"])))
    found = {text.split(" ")[0].rstrip(":") for text in differences(ours, theirs.to_dict())}
    assert "protocol" in found and found <= {"protocol", "settings", "task"}
    probe = implementation.startswith("solo-learn")
    assert (theirs["task"] == "online probe") == probe == ("another protocol (online probe)" in theirs["source"])
    table = judged(tmp_path, top1, dataset, **ours)
    assert implementation in names(table) and len(set(table["method"].dropna())) == 1
    words = f"Devillers & Lefort have no figure of {ours['method']} on {dataset}"
    assert (table.iloc[-1]["verdict"], table.iloc[-1]["verdict_reason"]) == ("no reference", words)


@pytest.mark.parametrize("epochs", LONGER)
def test_moco_v3s_longer_runs_are_told_apart_by_their_epochs(epochs):
    theirs = PUBLISHED.loc[(f"Chen et al., MoCo v3, {epochs} epochs", "imagenet")]
    assert theirs["top1"] == LONGER[epochs]
    found = differences(keys_of("moco_v3_imagenet", {"epochs": epochs}), theirs.to_dict())
    assert [text for text in found if not text.startswith(("protocol", "settings"))] == []
    assert f"epochs 100, the reference {epochs}" in differences(keys_of("moco_v3_imagenet", {}), theirs.to_dict())


def test_every_figure_names_its_source():
    assert PUBLISHED[["source", "source_of_keys"]].notna().all(axis=None)


def test_a_run_is_never_judged_beside_another_methods_figure(tmp_path):
    """A SimCLR of BYOL's figure to the digit differs from its own method's."""
    line = judged(tmp_path, 91.92, **{**keys_of("simclr_cifar10_authors", {}), "epochs": 799}).iloc[-1]
    assert line["verdict_reason"] == "epochs 799, the reference 800" and line["reference_top1"] == 91.70


def test_a_method_without_a_figure_says_so(tmp_path):
    line = judged(tmp_path, 92.0, method="vicreg", head="8192-8192-8192").iloc[-1]
    words = "Devillers & Lefort have no figure of vicreg on cifar10"
    assert (line["verdict"], line["verdict_reason"]) == ("no reference", words) and pd.isna(line["reference_top1"])


def test_a_simclr_whose_head_is_not_told_is_not_compared(tmp_path):
    keys = keys_of("simclr_cifar10_authors", {})
    line = judged(tmp_path, 91.7, **{key: value for key, value in keys.items() if key != "head"}).iloc[-1]
    assert (line["verdict"], line["verdict_reason"]) == ("not comparable", "not told by metrics.csv: head")
    other = {**keys, "head": "2048-64, last batch norm without affine"}
    assert "head 2048-64" in judged(tmp_path / "b", 91.7, **other).iloc[-1]["verdict_reason"]


def names(frame: pd.DataFrame) -> list[str]:
    return frame["implementation"].tolist()


def test_tables_show_the_figures_of_their_methods(tmp_path):
    byol = judged(tmp_path / "a", 91.9)
    assert names(byol) == ["Original", "Devillers & Lefort", "This work"]
    simclr = judged(tmp_path / "b", 91.9, **keys_of("simclr_cifar10_authors", {}))
    companions = ["Devillers & Lefort, SimCLR", "Devillers & Lefort, SimCLR, 3 layers"]
    assert names(simclr) == [*companions, "Chen et al., SimCLR", "solo-learn, SimCLR", "This work"]
    equimod = judged(tmp_path / "c", 91.9, **keys_of("equimod_byol_cifar10", {}))
    assert names(equimod) == [
        "Devillers & Lefort, BYOL + EquiMod",
        "Devillers & Lefort, EquiMod's BYOL",
        "This work",
    ]
    assert "| 94.00 [" in to_markdown(simclr) and "& 94.00" in to_latex(simclr)
    read_table(to_csv(simclr), "simclr.csv")


def test_table_1_has_the_papers_rows_and_no_other_methods(tmp_path):
    table1 = judged(tmp_path / "a", 91.9, table="table1")
    published = table1[table1["status"] == "published"]
    assert names(published) == ["Original", "Devillers & Lefort"] * 2 and set(published["method"]) == {"byol"}


def test_figures_come_along_with_an_experiment_that_was_not_run(tmp_path):
    method = method_in_words(load_recipe("simclr_cifar10"))
    rows = [
        Row("mine", "cifar10", 800, 512, [0], [tmp_path / "none.csv"], untrained, method=method)
        for untrained in (False, True)
    ]
    assert "Devillers & Lefort, SimCLR" in names(make_table("mine", rows))
    assert "Devillers & Lefort" not in names(make_table("mine", rows))


def test_a_head_is_told_in_words():
    card = {"recipe": load_recipe("cifar10"), "training": {"epoch": 1.0}}
    assert figure_keys(card, 1)["head"] == "4096-256"
    assert figure_keys({**card, "training": {"epoch": 1.0}, "recipe": {}}, 1)["head"] is None
    assert keys_of("equimod_simclr_cifar10", {})["head"] == "2048-2048-128, last batch norm without affine"
    assert keys_of("equimod_byol_cifar10", {})["method"] == "byol + equimod"


def test_the_papers_cost_is_that_of_the_method():
    found = [paper_gpu_hours("cifar10", load_recipe(name)) for name in ("cifar10", "simclr_cifar10", "equimod_digits")]
    assert found == [8, 8, None]

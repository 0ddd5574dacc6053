import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from runs import StopAfter, evaluate, evaluation
from selfsup.errors import PermanentError, UserError
from selfsup.evaluation.metrics import keys_of
from selfsup.job.ledger import Ledger
from selfsup.measures import top_k_hits
from selfsup.models import initial_backbone
from selfsup.protocols import Evaluation, linear_evaluation
from selfsup.recipe import load_recipe
from selfsup.tables.figure_keys import differences
from selfsup.tables.layouts import Notes, to_latex, to_markdown
from selfsup.tables.rows import (
    COMPARED_WITH,
    REFERENCE,
    Row,
    dataset_label,
    make_table,
    read_table,
    to_csv,
)

AUTHORS = load_recipe("cifar10_authors")


def figure_keys(card, recipe, n_train):
    return keys_of(linear_evaluation(recipe, "cifar10"), card, recipe, n_train)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_counts_labels_among_the_k_largest(k):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(200, 9)), random.integers(0, 9, 200)
    wanted = sum(label in np.argsort(-row)[:k] for row, label in zip(logits, labels, strict=True))
    assert top_k_hits(torch.tensor(logits), torch.tensor(labels), k) == wanted


def test_ties_go_to_the_lower_class_and_count_once():
    logits = torch.zeros(3, 3)
    labels = torch.tensor([0, 1, 2])
    assert [top_k_hits(logits, labels, k) for k in (1, 2, 3)] == [1, 2, 3]


def test_logits_that_are_not_finite_are_no_hits():
    with pytest.raises(PermanentError, match="not finite"):
        top_k_hits(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]), 1)


def test_linear_evaluation_follows_a_restatement_of_its_protocol(tiny_store, tiny_recipe, tmp_path):
    """SGD with Nesterov momentum in NumPy, float64, on the same features: losses to 1e-4, the accuracy exactly."""
    from selfsup.data.loader import Batches, ViewMaker
    from selfsup.models import seeded_weights

    encoder = initial_backbone(tiny_recipe, 0).eval().requires_grad_(False)
    rows = evaluate(evaluation(encoder, tiny_store, tiny_recipe), tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    batches = Batches(tiny_store.train, tiny_recipe, seed=0, stage="linear")
    make_views = ViewMaker(tiny_store.train, tiny_recipe, torch.device("cpu"))
    with seeded_weights(0, 2):
        start = torch.nn.Linear(encoder.out_features, 3)
    w, b = start.weight.detach().double().numpy(), start.bias.detach().double().numpy()
    w_buffer, b_buffer, losses = 0 * w, 0 * b, []
    for step in range(10):
        lr = 0.2 * 0.5 * (1 + np.cos(np.pi * step / 10))
        batch = batches[step]
        with torch.no_grad():
            x = encoder(make_views(batch)[0]).double().numpy()
        logits = x @ w.T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        truth = np.eye(3)[batch.labels.numpy()]
        losses.append(-np.log((p * truth).sum(1)).mean())
        w_grad, b_grad = (p - truth).T @ x / len(x), (p - truth).mean(0)
        w_buffer, b_buffer = 0.9 * w_buffer + w_grad, 0.9 * b_buffer + b_grad
        w, b = w - lr * (w_grad + 0.9 * w_buffer), b - lr * (b_grad + 0.9 * b_buffer)
    assert [row["train_loss"] for row in rows] == pytest.approx([np.mean(losses[:5]), np.mean(losses[5:])], rel=1e-4)
    from selfsup.augment import centre_view

    pictures = centre_view(tiny_recipe, map(tiny_store.test.image, range(19)))
    with torch.no_grad():
        scores = encoder(pictures).double().numpy() @ w.T + b
    assert rows[-1]["top1"] == pytest.approx(100 * (scores.argmax(1) == tiny_store.test.labels).mean())
    assert rows[-1]["top5"] == 100


@pytest.mark.parametrize("steps", [1, 4, 5, 7])
def test_an_evaluation_that_was_stopped_and_continued_equals_an_uninterrupted_one(
    tiny_store, tiny_recipe, tmp_path, steps
):
    """Every figure of every epoch, to the bit; in mid-epoch and at an epoch's end, after one of several saves."""
    encoder = initial_backbone(tiny_recipe, 0).eval().requires_grad_(False)

    def figures(rows):
        return [{key: value for key, value in row.items() if key != "images_per_s"} for row in rows]

    whole = evaluation(encoder, tiny_store, tiny_recipe)
    evaluate(whole, tmp_path / "whole")
    stopped = evaluation(encoder, tiny_store, tiny_recipe)
    evaluate(stopped, tmp_path / "parts", StopAfter(steps - 1), minutes=1e-9)
    assert not stopped.finished and stopped.step == steps
    continued = evaluation(encoder, tiny_store, tiny_recipe)
    assert continued.resume(tmp_path / "parts" / "partial").name == f"step_{steps:09d}.pt"
    evaluate(continued, tmp_path / "parts")
    assert continued.finished and figures(continued.rows) == figures(whole.rows)
    other = evaluation(encoder, tiny_store, tiny_recipe, "another encoder")
    assert other.resume(tmp_path / "parts" / "partial") is None and other.step == 0
    assert not list((tmp_path / "parts" / "partial").iterdir())  # worth nothing, and in the way of newer ones


def test_the_encoder_stays_as_it_is(tiny_store, tiny_recipe, tmp_path):
    encoder = initial_backbone(tiny_recipe, 0).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    evaluate(evaluation(encoder, tiny_store, tiny_recipe), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_batch_larger_than_the_training_set_is_refused(tiny_store, tiny_recipe):
    recipe = {**tiny_recipe, "linear": {**tiny_recipe["linear"], "batch": 64}}
    encoder = initial_backbone(recipe, 0).eval()
    with pytest.raises(UserError, match="batch is 64, more than the 43"):
        evaluation(encoder, tiny_store, recipe)


def test_a_last_batch_with_fewer_images_than_ranks_leaves_one_of_them_idle(tiny_store, tiny_recipe):
    from selfsup.data.loader import Batches, ViewMaker

    recipe = {**tiny_recipe, "linear": {**tiny_recipe["linear"], "drop_last": False, "batch": 6}}
    idle = Batches(tiny_store.train, recipe, seed=0, stage="linear", rank=1, world_size=2)[7]
    views = ViewMaker(tiny_store.train, recipe, torch.device("cpu"))(idle)
    assert views[0].shape == (0, 3, 8, 8) and idle.total == 1


def test_the_protocol_is_named_in_words():
    recipe = load_recipe("cifar10")
    assert recipe.linear.protocol({**recipe, "micro_batches": 4}).endswith("pretrained in 4 micro-batches")
    assert recipe.linear.protocol(recipe) == "linear, 90 epochs, batch 256, lr 0.2 cosine to 0, last epoch"


# The keys of Devillers & Lefort's figure for CIFAR-10, as an evaluation of ours writes them.
LIKE_THE_PAPER = {
    "n_test": 10000,
    "protocol": "linear, 90 epochs, batch 256, lr 0.2 cosine to 0.0001, last epoch",
    "method": "byol",
    "backbone": "resnet18",
    "width": 64,
    "stem": "3 x 3, stride 1",
    "epochs": 800,
    "global_batch": 512,
    "task": "linear",
    "settings": AUTHORS.linear.in_words(AUTHORS),
    "labels": 100,
    "n_train": 50000,
}


def metrics_file(folder, top1, top5=99.0, sha="abc", without=(), **changes):
    folder.mkdir(parents=True)
    line = {"top1": top1, "top5": top5, "best_top1": top1 + 0.5, **LIKE_THE_PAPER, "encoder_sha256": sha, **changes}
    line = {key: value for key, value in line.items() if key not in without}
    pd.DataFrame([{**line, "numerics_changes": 0}]).to_csv(folder / "metrics.csv", index=False)
    return folder / "metrics.csv"


def row(metrics, *, dataset="cifar10", experiment="cifar10", random_init=False, seeds=(0,)):
    return Row(experiment, dataset, 800, 512, list(seeds), list(metrics), random_init)


def test_table_1_has_the_papers_rows_and_says_what_was_not_run(tmp_path):
    frame = make_table("table1", [row([metrics_file(tmp_path / "a", 91.25)])])
    by_name = frame.set_index(["dataset", "implementation"])
    assert by_name.loc[("cifar10", "Original"), ["top1", "top5"]].tolist() == [91.1, 99.8]
    assert by_name.loc[("cifar10", "Devillers & Lefort"), ["top1", "top5"]].tolist() == [91.92, 99.69]
    assert by_name.loc[("imagenet", "Original"), ["top1", "top5"]].tolist() == [74.3, 91.6]
    assert by_name.loc[("imagenet", "Devillers & Lefort"), ["top1", "top5"]].tolist() == [74.03, 91.51]
    assert by_name.loc[("cifar10", "This work"), "top1"] == 91.25
    missing = by_name.loc[("imagenet", "This work")]
    assert missing["protocol"] == "not run" and np.isnan(missing["top1"]) and pd.isna(missing["n_test"])
    assert "not run" in to_markdown(frame)


def test_seeds_give_a_mean_and_a_spread_and_a_missing_one_says_not_run(tmp_path):
    files = [metrics_file(tmp_path / str(seed), top1, sha=f"sha{seed}") for seed, top1 in enumerate([90.0, 91.0, 92.0])]
    line = make_table("mine", [row(files, seeds=(0, 1, 2), dataset="digits")]).iloc[0]
    assert (line["top1"], line["top1_std"], line["seeds"]) == (91.0, 1.0, "0 1 2")
    assert line["encoder_sha256"] == "sha0 sha1 sha2"
    files[1].unlink()
    line = make_table("mine", [row(files, seeds=(0, 1, 2), dataset="digits")]).iloc[0]
    assert line["status"] == "not run" and np.isnan(line["top1"])


def test_published_rows_come_with_their_dataset_only(tmp_path):
    digits = make_table("demo", [row([metrics_file(tmp_path / "a", 97)], dataset="digits")])
    assert digits["implementation"].tolist() == ["This work"]
    cifar = make_table("mine", [row([metrics_file(tmp_path / "b", 91)])])
    assert set(cifar["dataset"]) == {"cifar10"} and len(cifar) == 3


def test_the_csv_round_trips_its_figures(tmp_path):
    files = [metrics_file(tmp_path / name, top1) for name, top1 in {"a": 97 + 2 / 9, "b": 96 + 1 / 7}.items()]
    frame = make_table("demo", [row(files, dataset="digits", seeds=(0, 1))])
    again = read_table(to_csv(frame), "demo.csv")
    pd.testing.assert_frame_equal(again.dropna(axis=1), frame.dropna(axis=1), check_dtype=False, check_exact=True)
    assert again["n_test"][0] == 10000 and again["seeds"][0] == "0 1"
    wanted = [
        "implementation",
        "dataset",
        "epochs",
        "global_batch",
        "seeds",
        "top1",
        "top5",
        "n_test",
        "protocol",
        "encoder_sha256",
    ]
    assert list(again.columns)[:10] == wanted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace(",97.5,", ",197.5,"), "top1 is 197.5, wanted at most 100"),
        (lambda text: text.replace("no reference", "excellent"), "verdict is 'excellent'"),
        (lambda text: text.replace("top5,", "top_5,", 1), "unknown key 'top_5'"),
    ],
)
def test_a_table_whose_cells_are_not_what_their_columns_say_is_refused(tmp_path, change, words):
    text = to_csv(make_table("demo", [row([metrics_file(tmp_path / "a", 97.5)], dataset="digits")]))
    with pytest.raises(UserError, match="demo.csv.*" + words):
        read_table(change(text), "demo.csv")


@pytest.mark.parametrize(
    ("top1", "changes", "verdict", "reason"),
    [
        (91.92 - 1.49, {}, "agrees", "-1.49 points from Devillers & Lefort, tolerance 1.5"),
        (91.92 - 1.51, {}, "differs", "-1.51 points"),
        (91.92 + 1.51, {}, "differs", "+1.51 points"),
        (91.92, {"random_init": True}, "untrained", None),
        (91.92, {"dataset": "digits"}, "no reference", None),
    ],
)
def test_the_verdict_holds_the_last_epoch_against_the_paper_where_both_did_the_same(
    tmp_path, top1, changes, verdict, reason
):
    line = replace(row([metrics_file(tmp_path / "a", top1)]), **changes)
    found = make_table("mine", [line]).iloc[-1]
    assert found["verdict"] == verdict
    assert (reason in found["verdict_reason"]) if reason else pd.isna(found["verdict_reason"])
    assert found["best_top1"] == top1 + 0.5  # half a point better, and no verdict looks at it


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backbone": "resnet50"}, "backbone resnet50, the reference resnet18"),
        ({"width": 128}, "width 128, the reference 64"),
        (
            {"stem": "7 x 7, stride 2, max-pool"},
            "stem 7 x 7, stride 2, max-pool, the reference 3 x 3, stride 1",
        ),
        ({"epochs": 100}, "epochs 100, the reference 800"),
        ({"epochs": 1000}, "epochs 1000, the reference 800"),
        ({"global_batch": 256}, "batch 256, the reference 512"),
        ({"task": "knn"}, "task knn, the reference linear"),
        (
            {"protocol": "linear, 1 epochs, batch 256, lr 0.2 cosine to 0, last epoch"},
            "protocol: 1 epochs, the reference: 90 epochs",
        ),
        (
            {"protocol": LIKE_THE_PAPER["protocol"] + ", images packed with shorter side 256"},
            "protocol: images packed with shorter side 256, the reference: nothing more",
        ),
        (
            {"settings": LIKE_THE_PAPER["settings"].replace(" Nesterov", "").replace("flip 0.5", "flip 0")},
            "settings of the evaluation: momentum 0.9, flip 0, the reference: momentum 0.9 Nesterov, flip 0.5",
        ),
        ({"labels": 10}, "share of labels (%) 10, the reference 100"),
        ({"n_train": 45000}, "training images 45000, the reference 50000"),
        ({"n_test": 9999}, "test images 9999, the reference 10000"),
        (
            {"epochs": 100, "backbone": "resnet50"},
            "backbone resnet50, the reference resnet18; epochs 100, the reference 800",
        ),
    ],
)
def test_a_figure_that_differs_in_any_key_agrees_with_nobody_and_says_in_which(tmp_path, changes, reason):
    found = make_table("mine", [row([metrics_file(tmp_path / "a", 91.92, **changes)])])
    line = found.iloc[-1]
    assert (line["verdict"], line["verdict_reason"]) == ("not comparable", reason)
    assert (line["reference_top1"], line["difference"]) == (91.92, 0)  # told all the same
    assert f"not comparable: {reason}" in to_markdown(found)
    to_csv(found)  # which accepts it


def test_metrics_of_an_older_version_make_a_table_that_says_what_is_unknown(tmp_path):
    new = set(LIKE_THE_PAPER) - {"n_test", "protocol"}
    old = metrics_file(tmp_path / "old", 91.92, without=new)
    line = read_table(to_csv(make_table("mine", [row([old])])), "mine.csv").iloc[-1]
    wanted = "method, backbone, width, stem, task, settings of the evaluation, share of labels (%), training images"
    assert (line["verdict"], line["verdict_reason"]) == ("not comparable", f"not told by metrics.csv: {wanted}")
    assert (line["top1"], line["epochs"], line["global_batch"]) == (91.92, 800, 512)  # config.yaml's, as it was then
    mixed = make_table("mine", [row([old, metrics_file(tmp_path / "new", 92)], seeds=(0, 1))]).iloc[-1]
    assert mixed["verdict"] == "not comparable" and "not told by metrics.csv: method" in mixed["verdict_reason"]


def test_what_was_evaluated_counts_not_what_config_yaml_says_now(tmp_path):
    line = replace(row([metrics_file(tmp_path / "a", 91.92, epochs=1)]), epochs=800)
    found = make_table("mine", [line]).iloc[-1]
    assert (found["epochs"], found["verdict"]) == (1, "not comparable")
    unknown = make_table("mine", [row([metrics_file(tmp_path / "b", 91.92, epochs=None)])]).iloc[-1]
    assert unknown["verdict_reason"] == "not told by metrics.csv: epochs" and pd.isna(unknown["epochs"])


def test_a_reference_that_does_not_tell_a_key_is_agreed_with_by_nobody():
    words = differences(LIKE_THE_PAPER, {**LIKE_THE_PAPER, "global_batch": pd.NA})
    assert words == ["batch 512, the reference's is unknown"]


@pytest.mark.parametrize(
    ("name", "images", "left"),
    [
        ("cifar10_authors", (50000, 10000), []),
        ("cifar10", (50000, 10000), ["epochs 1000, the reference 800"]),
        ("imagenet", (1281167, 50000), []),
        ("imagenet_authors", (1281167, 50000), []),
        ("imagenet_official", (1281167, 50000), ["protocol: 80 epochs, the reference: 90 epochs"]),
    ],
)
def test_the_papers_recipes_have_the_keys_of_its_figures(name, images, left):
    """In all but what docs/reproduce.md tells of them."""
    recipe, (n_train, n_test) = load_recipe(name), images
    card = {"recipe": recipe, "training": {"epoch": float(recipe["epochs"])}}
    ours = {**figure_keys(card, recipe, n_train), "n_test": n_test, "protocol": recipe.linear.protocol(recipe)}
    published = pd.read_csv(REFERENCE).set_index(["implementation", "dataset"])
    assert differences(ours, published.loc[(COMPARED_WITH, name.split("_")[0])].to_dict()) == left
    original = differences(ours, published.loc[("Original", name.split("_")[0])].to_dict())
    assert original  # its protocol was another


def test_an_encoders_keys_are_those_of_its_card():
    recipe, short = load_recipe("cifar10_authors"), load_recipe("cifar10", {"epochs": 20})
    stopped = figure_keys({"recipe": recipe, "training": {"epoch": 12.5}}, short, 50000)
    assert (stopped["epochs"], stopped["global_batch"], stopped["method"]) == (12, 512, "byol")
    untrained = figure_keys({"recipe": recipe, "network": "at random initialisation"}, recipe, 50000)
    assert (untrained["epochs"], untrained["global_batch"], untrained["method"]) == (0, None, None)
    of_authors = figure_keys({"recipe": short, "imported": {"epochs": 800}}, short, 50000)
    assert of_authors["epochs"] == 800
    official = load_recipe("imagenet_official_300")
    assert figure_keys({"recipe": official, "imported": {"steps": 312784}}, official, 1281167)["epochs"] == 1000
    assert figure_keys({"recipe": official, "imported": {}}, official, 1281167)["epochs"] is None
    assert figure_keys({"training": {"epoch": 3}}, recipe, 50000)["backbone"] is None


def test_the_images_that_are_judged_on_tell_nothing_of_a_pretraining_on_others():
    """An imported encoder that tells its steps alone."""
    official = load_recipe("imagenet_official_300")
    card = {"recipe": official, "imported": {"steps": 312784}}
    elsewhere = Evaluation("on_pets", "linear", official.linear, "pets")
    assert keys_of(elsewhere, card, official, 3680)["epochs"] is None


def test_a_folder_of_images_is_not_the_papers_dataset_whatever_its_name():
    assert dataset_label("mine", "imagenet") == "imagenet" and dataset_label("birds", "folder") == "birds"
    assert dataset_label("cifar10", "folder") == "cifar10 (folder)"


def test_gpu_hours_are_one_seeds_and_those_of_processors_are_none(tmp_path):
    ledgers = []
    for seed, hours in enumerate((2, 4)):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        Ledger(folder).open(
            {"started": "2026-01-01T00:00:00+00:00", "ended": f"2026-01-01T0{hours}:00:00+00:00", "devices": 2}
            | {"device": "NVIDIA H100"}
        )
        ledgers.append(folder / "ledger.csv")
    files = [metrics_file(tmp_path / name, 91) for name in "ab"]
    found = make_table("mine", [replace(row(files, seeds=(0, 1)), ledgers=tuple(ledgers))])
    assert found.iloc[-1]["gpu_hours"] == 6  # two devices, three hours on average
    text = (tmp_path / "seed0" / "ledger.csv").read_text()
    for ledger in ledgers:
        ledger.write_text(text.replace("NVIDIA H100,4.0,4.0", "cpu,4.0,0"))
    found = make_table("mine", [replace(row(files, seeds=(0, 1)), ledgers=tuple(ledgers))])
    assert (found.iloc[-1]["gpu_hours"], found.iloc[-1]["device_hours"]) == (0, 4)
    assert "none: 4.00 h of CPU" in to_markdown(found)
    ledgers[1].unlink()
    found = make_table("mine", [replace(row(files, seeds=(0, 1)), ledgers=tuple(ledgers))])
    assert pd.isna(found.iloc[-1]["gpu_hours"])  # half of it is not known


def test_the_latex_has_the_papers_layout(tmp_path):
    text = to_latex(make_table("table1", [row([metrics_file(tmp_path / "a", 91.25)])]))
    assert r"Implementations & \multicolumn{2}{c}{CIFAR10} & \multicolumn{2}{c}{ImageNet} \\" in text
    assert r"& Top-1 & Top-5 & Top-1 & Top-5 \\" in text
    assert r"Devillers \& Lefort & 91.92$^{c}$ & 99.69 & 74.03$^{d}$ & 91.51 \\" in text
    assert r"This work & 91.25 & 99.00 & not run & not run \\" in text
    figures = text.split(r"\hline")[2]
    assert all(line.replace(r"\&", "").count("&") == 4 for line in figures.strip().splitlines())


def test_more_footnotes_than_letters_have_marks_of_two(tmp_path):
    marks = [Notes([""] * number).mark("new") for number in (0, 25, 26, 51, 52, 27 * 26)]
    assert marks == ["a", "z", "aa", "az", "ba", "aaa"]
    rows = [
        row([metrics_file(tmp_path / str(number), 91, epochs=number)], experiment=f"e{number}") for number in range(30)
    ]
    frame = make_table("mine", rows)
    markdown, latex = to_markdown(frame), to_latex(frame)
    for letters in ("a", "z", "aa", "af"):  # two of the paper's rows, thirty of ours
        assert markdown.count(f"[{letters}]") == 2 and latex.count(f"$^{{{letters}}}$") == 2
    assert not set("{|}~") & set(markdown.replace("|", ""))


@pytest.mark.parametrize(("key", "other"), [("n_test", 9999), ("protocol", "linear"), ("width", 128), ("task", "knn")])
def test_seeds_that_were_evaluated_differently_are_not_averaged(tmp_path, key, other):
    one, other = metrics_file(tmp_path / "a", 90), metrics_file(tmp_path / "b", 91, **{key: other})
    with pytest.raises(UserError, match=f"differ in {key}"):
        make_table("demo", [row([one, other], seeds=(0, 1), dataset="digits")])


def test_a_damaged_metrics_file_is_named(tmp_path):
    path = metrics_file(tmp_path / "a", 90)
    path.write_text("top1\n90\n")
    with pytest.raises(UserError, match=r"metrics\.csv: not the metrics of one evaluation"):
        make_table("demo", [row([path], dataset="digits")])


def test_a_table_is_written_to_a_name_in_csv_alone_for_others_would_lose_what_follows_their_dot(
    repository, tmp_path, starter
):
    script = repository / "workflow" / "scripts" / "make_table.py"
    output = tmp_path / "demo.v2"
    command = [starter, str(script), "--table", "demo", "--output", str(output)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert done.stderr.startswith(f"error: --output is {output}, wanted a name that ends in .csv")
    assert subprocess.run([*command[:-1], f"{output}.csv"], cwd=repository, capture_output=True).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"demo.v2.csv", "demo.v2.md", "demo.v2.tex"}


def test_evaluations_of_one_dataset_are_columns_of_their_own(tmp_path):
    """A published figure stands in the column of our evaluation that is done like it."""
    linear, nearest = metrics_file(tmp_path / "a", 91.25), metrics_file(tmp_path / "b", 88.5, task="knn", labels=100)
    rows = [row([linear]), replace(row([nearest]), evaluation="neighbours")]
    frame = make_table("mine", rows)
    text = to_markdown(frame).splitlines()
    assert [title.strip() for title in text[0].split("|")[2:4]] == ["CIFAR10, linear", "CIFAR10, neighbours"]
    (ours,) = (line for line in text[:6] if line.startswith("| This work "))
    assert "91.25" in ours.split("|")[2] and "88.50" in ours.split("|")[3]
    (paper,) = (line for line in text[:6] if line.startswith("| Devillers & Lefort "))
    assert "91.92" in paper.split("|")[2] and paper.split("|")[3].strip() == ""
    assert list(frame[frame["status"] == "run"]["evaluation"]) == ["linear", "neighbours"]
    assert frame.iloc[-1]["verdict"] == "not comparable" and "task knn" in frame.iloc[-1]["verdict_reason"]


def test_our_implementations_stand_last_and_columns_in_the_order_of_the_rows(tmp_path):
    linear, nearest = metrics_file(tmp_path / "a", 91.25), metrics_file(tmp_path / "b", 88.5, task="knn", labels=100)
    frame = make_table("mine", [row([linear]), replace(row([nearest]), evaluation="neighbours")])
    for rows, columns in ((frame, ["linear", "neighbours"]), (frame[::-1], ["neighbours", "linear"])):
        head, _, *lines = to_markdown(rows).partition("\n\n")[0].splitlines()
        assert [title.split(", ")[1].strip() for title in head.split("|")[2:4]] == columns
        assert [line.startswith("| This work ") for line in lines] == [False] * (len(lines) - 1) + [True]
    assert len(lines) > 1


def test_a_key_that_a_backbone_has_not_got_is_no_unknown_one():
    """timm's models have no width and no stem."""
    theirs = {**LIKE_THE_PAPER, "backbone": "timm/vit_small_patch16_224", "width": None, "stem": None}
    assert differences(theirs, theirs) == []
    assert differences({**LIKE_THE_PAPER, "width": None}, LIKE_THE_PAPER) == ["not told by metrics.csv: width"]

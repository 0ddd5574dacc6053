from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from runs import StopAfter, evaluate, evaluation
from selfsup.errors import PermanentError, UserError
from selfsup.evaluation.layout import to_latex, to_markdown
from selfsup.evaluation.linear import protocol
from selfsup.evaluation.metrics import top_k_hits
from selfsup.evaluation.table import Row, make_table, read_table, to_csv
from selfsup.job.ledger import Ledger
from selfsup.models import initial_backbone
from selfsup.recipe import load_recipe


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
    idle = Batches(tiny_store.train, recipe, seed=0, stage="linear", rank=1, ranks=2)[7]
    views = ViewMaker(tiny_store.train, recipe, torch.device("cpu"))(idle)
    assert views[0].shape == (0, 3, 8, 8) and idle.total == 1


def test_the_protocol_is_named_in_words():
    assert protocol({**load_recipe("cifar10"), "micro_batches": 4}).endswith("pretrained in 4 micro-batches")
    assert protocol(load_recipe("cifar10")) == "linear, 90 epochs, batch 256, lr 0.2 cosine to 0, last epoch"


def metrics_file(folder, top1, top5=99.0, sha="abc"):
    folder.mkdir(parents=True)
    line = {
        "top1": top1,
        "top5": top5,
        "best_top1": top1 + 0.5,
        "n_test": 10000,
        "protocol": "linear",
        "encoder_sha256": sha,
    }
    pd.DataFrame([{**line, "numerics_changes": 0}]).to_csv(folder / "metrics.csv", index=False)
    return folder / "metrics.csv"


def row(metrics, *, dataset="cifar10", experiment="cifar10", random_init=False, seeds=(0,)):
    return Row(experiment, dataset, 1000, 512, list(seeds), list(metrics), random_init)


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
def test_a_table_that_is_not_what_its_schema_says_is_refused(tmp_path, change, words):
    text = to_csv(make_table("demo", [row([metrics_file(tmp_path / "a", 97.5)], dataset="digits")]))
    with pytest.raises(UserError, match="demo.csv.*" + words):
        read_table(change(text), "demo.csv")


@pytest.mark.parametrize(
    ("top1", "changes", "verdict", "reason"),
    [
        (91.92 - 1.49, {}, "agrees", "-1.49 points from Devillers & Lefort, tolerance 1.5"),
        (91.92 - 1.51, {}, "differs", "-1.51 points"),
        (91.92 + 1.51, {}, "differs", "+1.51 points"),
        (91.92, {"epochs": 100}, "not comparable", "epochs 100, the reference 800"),
        (91.92, {"global_batch": 256}, "not comparable", "batch 256, the reference 512"),
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


def test_seeds_that_were_evaluated_differently_are_not_averaged(tmp_path):
    one, other = metrics_file(tmp_path / "a", 90), metrics_file(tmp_path / "b", 91)
    other.write_text(other.read_text().replace("10000", "9999"))
    with pytest.raises(UserError, match="differ in n_test"):
        make_table("demo", [row([one, other], seeds=(0, 1), dataset="digits")])


def test_a_damaged_metrics_file_is_named(tmp_path):
    path = metrics_file(tmp_path / "a", 90)
    path.write_text("top1\n90\n")
    with pytest.raises(UserError, match=r"metrics\.csv: no metrics of one evaluation"):
        make_table("demo", [row([path], dataset="digits")])

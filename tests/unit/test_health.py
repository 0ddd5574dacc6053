"""Health figures: what they measure, that they change nothing, and that a resume repeats them."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
import yaml
from torch._dynamo.testing import CompileCounter

import health_gate
from operators import Operators
from runs import StopAfter, attempt_at, equal_states, on_cpu, state_of, train
from selfsup.bands import BANDS, band, collapsed, outside, read_bands, record, recorded_for
from selfsup.data.store import PackedStore, StoreWriter
from selfsup.errors import UserError
from selfsup.measures import alignment, effective_rank, encoder_floors, feature_spread, knn_top1, uniformity
from selfsup.methods import Output
from selfsup.methods.byol import BYOL, PROJECTION_SPREAD_FLOOR
from selfsup.models import BatchNorm
from selfsup.models.modes import batch_statistics, evaluation_mode
from selfsup.recipe import load_recipe, pretraining_part
from selfsup.settings.registries import METHODS
from selfsup.training import health, kept_pictures, pretraining, sinks
from selfsup.training.health import BATCH, Health, steps_between
from selfsup.training.kept_pictures import KeptPictures, has_room
from selfsup.training.pretraining import Pretraining
from selfsup.training.sinks import check_trackers
from tiny import TINY, with_method

pytestmark = pytest.mark.usefixtures("shallow")

CHEAP = {"feature_spread", "alignment", "cosine", "projection_spread"}


@pytest.fixture
def features() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng().normal(size=(60, 7)))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_spread_rank_and_uniformity_follow_their_definitions(features):
    """Restated in NumPy, float64, from the papers' equations; 1e-4 is float32's share of sums over 1,770 pairs."""
    x = features.numpy()
    assert feature_spread(features) == pytest.approx(unit(x).std(axis=0, ddof=1).mean() * 7**0.5, rel=1e-4)
    shares = np.linalg.svd(x, compute_uv=False)
    shares = shares / shares.sum() + 1e-7
    assert effective_rank(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    distances = ((unit(x)[:, None] - unit(x)[None]) ** 2).sum(-1)[np.triu_indices(60, 1)]
    assert uniformity(features) == pytest.approx(np.log(np.exp(-2 * distances).mean()), rel=1e-4)
    y = x + 0.1
    assert alignment(features, torch.from_numpy(y)) == pytest.approx(((unit(x) - unit(y)) ** 2).sum(1).mean(), rel=1e-4)


def test_a_collapsed_encoder_has_no_spread_rank_one_and_no_uniformity():
    same = torch.randn(1, 7).expand(60, 7)
    assert feature_spread(same) == pytest.approx(0, abs=1e-6)
    assert effective_rank(same) == pytest.approx(1, rel=1e-3)
    assert uniformity(same) == pytest.approx(0, abs=1e-5)
    assert effective_rank(torch.zeros(60, 7)) == pytest.approx(1, rel=1e-3)  # dead, not damaged
    assert np.isnan(effective_rank(same * float("nan")))


def test_knn_follows_a_restatement(features):
    """Votes in NumPy, float64, one query after the other; random votes of float64 do not tie."""
    random = np.random.default_rng()
    labels, asked = random.integers(0, 4, 60), random.integers(0, 4, 500)
    queries = random.normal(size=(500, 7))
    hits = 0
    for query, truth in zip(unit(queries), asked, strict=True):
        cosines = unit(features.numpy()) @ query
        votes = np.zeros(4)
        for near in np.argsort(-cosines)[:20]:
            votes[labels[near]] += np.exp(cosines[near] / 0.07)
        hits += votes.argmax() == truth
    found = knn_top1(features, torch.from_numpy(labels), torch.from_numpy(queries), torch.from_numpy(asked), 4)
    # Of 150,000 queries float32 turned none; it may turn four of these 500.
    assert found == pytest.approx(100 * hits / 500, abs=0.81)


def test_evaluation_mode_gives_every_module_its_own_mode_back():
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Sequential(torch.nn.BatchNorm1d(3)))
    network[1].eval()
    with evaluation_mode(network):
        assert not network[0].training and not network(torch.ones(2, 3)).requires_grad
    assert [network.training, network[0].training, network[1].training, network[1][0].training] == [
        True,
        True,
        False,
        False,
    ]


def test_batch_statistics_are_those_of_train_mode_and_change_nothing():
    network = torch.nn.Sequential(BatchNorm(3), torch.nn.Sequential(BatchNorm(3)))
    batch = torch.randn(50, 3) * 5 + 7
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with evaluation_mode(network):
        late = network(batch)
        with pytest.raises(KeyboardInterrupt), batch_statistics(network):
            seen = network(batch)
            raise KeyboardInterrupt
        assert torch.equal(network(batch), late)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.allclose(seen, network(batch)) and not torch.allclose(seen, late)


@pytest.fixture
def measured_often(monkeypatch):
    """Cheap figures at every step, and milestones at every epoch."""
    monkeypatch.setattr(health, "SHARE", 100.0)
    monkeypatch.setattr(health, "IMAGES_PER_FEATURE", 1)  # the tiny dataset has 43 images for 32 features


@pytest.fixture
def run(tiny_recipe, tiny_store, tmp_path):
    def make(folder="run", **changes) -> pretraining.Run:
        settings = {"recipe": tiny_recipe, "seed": 0, "revision": 1, "store": tiny_store, "folder": tmp_path / folder}
        made = pretraining.Run(**{**settings, "compute": on_cpu(), "checkpoint_minutes": 60, **changes})
        made.folder.mkdir(exist_ok=True)
        return made

    return make


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_looking_at_health_changes_no_bit_of_the_training(run, monkeypatch):
    never = run("never")
    monkeypatch.setattr(Health, "figures", lambda self, step, last: {})
    monkeypatch.setattr(Health, "milestone", lambda self, step: {})
    torch.manual_seed(0)  # the loader draws from it, once a segment
    assert train(never, 4)
    state = torch.random.get_rng_state()
    monkeypatch.undo()
    monkeypatch.setattr(health, "SHARE", 100.0)
    often = run("often")
    torch.manual_seed(0)
    assert train(often, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len([row for row in rows(often.folder / "history.csv") if row["feature_spread"]]) == 20
    assert equal_states(state_of(never), state_of(often))


def test_a_resumed_run_has_the_figures_of_an_uninterrupted_one(run, measured_often):
    whole, parts = run("whole"), run("parts", knn=None)
    assert train(whole, 4)
    assert not train(parts, 4, stop=StopAfter(7))
    with open(parts.folder / "knn.csv", "a") as file:
        file.write("15,3,15,3,99,9,9,9,9\n")  # of a milestone whose step was lost
    assert train(parts, 4)
    assert rows(parts.folder / "knn.csv") == rows(whole.folder / "knn.csv")
    assert [row["step"] for row in rows(whole.folder / "knn.csv")] == ["5", "10", "15", "20"]
    names = ("step", *sorted(CHEAP))
    histories = [[[row[name] for name in names] for row in rows(one.folder / "history.csv")] for one in (whole, parts)]
    assert histories[0] == histories[1]
    cards = [json.loads((one.folder / "epoch_0004.json").read_text())["health"] for one in (whole, parts)]
    assert cards[0] == cards[1]
    assert set(cards[0]) == CHEAP | {"knn_top1", "effective_rank", "uniformity"}


@pytest.mark.parametrize("images_per_feature", [1, 4])
def test_without_labels_k_nn_alone_is_left_out_and_no_bit_of_the_training_changes(
    run, tiny_store, tmp_path, measured_often, monkeypatch, caplog, images_per_feature
):
    """43 images for 32 features: with 4 wanted for each there is nothing to measure, and knn.csv has no row."""
    monkeypatch.setattr(health, "IMAGES_PER_FEATURE", images_per_feature)
    writer = StoreWriter(tmp_path / "unlabelled", [])
    writer.write_raw("train", tiny_store.train.raw, None)
    writer.finish()
    known, unknown = run("known"), run("unknown", store=PackedStore(tmp_path / "unlabelled"))
    with caplog.at_level("INFO"):
        assert train(known, 4) and train(unknown, 4)
    assert equal_states(state_of(known), state_of(unknown))
    cards = [json.loads((one.folder / "epoch_0004.json").read_text())["health"] for one in (known, unknown)]
    assert cards[0].pop("knn_top1") >= 0 and cards[0] == cards[1]
    lines = rows(unknown.folder / "knn.csv") if (unknown.folder / "knn.csv").exists() else []
    assert len(lines) == (4 if images_per_feature == 1 else 0)
    figures = ["effective_rank", "uniformity", "bank", "queries"]
    assert not lines or list(lines[0]) == ["step", "epoch", *figures, "steps_done", "epochs_done"]
    assert caplog.text.count("has no labels: k-NN accuracy is left out of knn.csv") == 1


def test_rank_and_uniformity_are_left_out_where_images_are_too_few(run):
    """43 images for 32 features: k-NN alone is told."""
    few = run()
    assert train(few, 4)
    assert set(json.loads((few.folder / "epoch_0004.json").read_text())["health"]) == CHEAP | {"knn_top1"}


def test_knn_asks_training_images_that_are_not_in_its_bank(run, monkeypatch):
    seen, features = [], Health._features
    monkeypatch.setattr(Health, "_features", lambda self, indices: seen.append(indices) or features(self, indices))
    looked = run()
    monkeypatch.setattr(looked.store.test, "image", lambda index: pytest.fail("a test image was looked at"))
    assert train(looked, 4)
    bank, queries = seen
    assert len(queries) == 5 and len(bank) == 38 and not set(bank) & set(queries)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pictures_of_milestones_are_made_once_and_have_the_figures_of_those_made_anew(
    run, measured_often, monkeypatch, precision
):
    """Four milestones of 32 pictures of the bank and 5 queries, of 768 bytes each: in room for 34 the bank stays."""
    made, centre_view = [], health.centre_view

    def counted(recipe, images):
        pictures = centre_view(recipe, images)
        made.append(len(pictures))
        return pictures

    monkeypatch.setattr(health, "centre_view", counted)
    figures = []
    for room, wanted in ((0, [32, 5] * 4), (34 * 768, [32, 5, 5, 5, 5]), (2**28, [32, 5])):
        monkeypatch.setattr(kept_pictures, "KEPT_BYTES", room)
        made.clear()
        looked = run(f"room {room}", compute=on_cpu(precision=precision))
        assert train(looked, 4)
        assert made == wanted
        figures.append(rows(looked.folder / "knn.csv"))
    assert len(figures[0]) == 4 and figures[0] == figures[1] == figures[2]


def test_kept_pictures_are_those_that_are_asked_for():
    kept = KeptPictures(lambda indices: torch.from_numpy(indices * 10.0), torch.device("cpu"))
    for places in ([1, 2], [1, 3], [1], [1, 2]):
        assert kept.of(np.array(places)).tolist() == [10.0 * place for place in places]


def test_a_gpu_that_is_short_of_memory_keeps_no_pictures(monkeypatch):
    """86 MB, CIFAR-10's, want 20 times as much that is free."""
    free = 2 * 86_000_000 * 10
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * 10**9))
    gpu = torch.device("cuda", 0)
    assert has_room(gpu, 86_000_000) and not has_room(gpu, 86_000_001)
    assert has_room(torch.device("cpu"), 86_000_001)


def test_what_a_methods_loss_wants_logged_is_a_column(run, monkeypatch):
    loss = BYOL.loss

    def with_scalar(self, batch, step):
        value, _ = loss(self, batch, step)
        return Output(value, {"own": value * 0 + len(batch.views[0]) + step.number})

    monkeypatch.setattr(BYOL, "loss", with_scalar)
    logged = run(recipe={**run().recipe, "micro_batches": 2})
    assert train(logged, 4)
    assert [float(row["own"]) for row in rows(logged.folder / "history.csv")] == [4 + step for step in range(20)]


def test_tensorboard_events_are_continuous_over_a_resume(run, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watched = run(trackers=("tensorboard",))
    assert not train(watched, 4, stop=StopAfter(7))
    assert train(watched, 4)
    events = event_accumulator.EventAccumulator(str(watched.folder / "tensorboard"))
    events.Reload()
    assert [one.step for one in events.Scalars("loss")] == list(range(20))
    losses = [float(row["loss"]) for row in rows(watched.folder / "history.csv")]
    assert [one.value for one in events.Scalars("loss")] == pytest.approx(losses, rel=1e-6)  # float32 there
    assert len(events.Scalars("knn_top1")) == 1


def test_trackers_keep_the_figures_of_every_segments_end(run):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watched = run(trackers=("tensorboard",))
    assert train(watched, 1, 2, 4)
    events = event_accumulator.EventAccumulator(str(watched.folder / "tensorboard"))
    events.Reload()
    told = [int(row["step"]) - 1 for row in rows(watched.folder / "knn.csv")]
    assert len(told) >= 3 and [one.step for one in events.Scalars("knn_top1")] == told


def test_a_missing_tensorboard_is_one_line_before_anything_begins(monkeypatch):
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        check_trackers(["tensorboard"])


def test_an_unknown_tracker_is_one_line():
    with pytest.raises(UserError, match=r"^the tracker 'tensorbord' does not exist; did you mean tensorboard\?$"):
        check_trackers(["tensorbord"])


def test_figures_are_those_of_eager_networks_and_nothing_is_compiled_for_them(run, measured_often, monkeypatch):
    """With `compile`, whose networks are compiled for a step alone: no graph comes with figures, or after them."""
    graphs, honest = CompileCounter(), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda one, **_: honest(one, dynamic=False, backend=graphs))
    torch._dynamo.reset()
    found = []
    for switches in ({}, {"compile": True}):
        one = run(str(switches), compute=on_cpu(**switches))
        training = pretraining.Pretraining(one)
        training.train_step(training.batches[0])
        counted = graphs.frame_count
        with attempt_at(one, 4) as attempt:
            figures = Health(training.method, one, attempt, start=0, steps_per_epoch=5, row_interval=1)
            found.append(figures.figures(1, last=True) | figures.milestone(5))
        training.train_step(training.batches[1])
        assert graphs.frame_count == counted
    torch._dynamo.reset()
    assert counted == 5  # two backbones, two projectors, a predictor
    assert found[0] == found[1]


def test_figures_of_the_shipped_recipes_cost_less_than_a_hundredth(run, monkeypatch):
    """Reckoned in forward passes: what is looked at, over what is trained; two kinds of figures, half each."""
    for name, images in {"cifar10": 50_000, "imagenet": 1_281_167}.items():
        recipe = load_recipe(name)
        steps, batch = images // recipe["global_batch"], recipe["global_batch"]
        one = object.__new__(Health)
        one._split = range(images)
        one._choose_images({"cifar10": 512, "imagenet": 2048}[name])
        every = -(-recipe["epochs"] // health.MILESTONES)
        milestones = (len(one._bank) + len(one._queries)) * health.MILESTONES
        assert milestones / (steps * batch * recipe["epochs"] * health.PASSES_OF_A_STEP) < health.SHARE
        assert len(one._bank) >= 4 * {"cifar10": 512, "imagenet": 2048}[name] and every == 50


@pytest.mark.parametrize("method", ["byol", "simsiam", "barlow_twins", "vicreg", "moco_v3"])
def test_figures_launch_less_than_a_hundredth_of_the_operators_of_the_steps_between_them(run, method):
    """Counted on a ResNet-18: its number of operators depends neither on its width nor on the batch.

    Both kinds together, on devices of the shipped recipes' batches, and on one of 1,024 images.
    """
    watched = run(recipe=load_recipe("digits", TINY if method == "byol" else with_method(method)))
    training = Pretraining(watched)
    training.train_step(training.batches[0])
    with Operators() as step:
        training.train_step(training.batches[1])
    with attempt_at(watched, 4) as attempt:
        looking = Health(training.method, watched, attempt, start=0, steps_per_epoch=5, row_interval=1)
        looking._features(looking._bank)  # makes the pictures
        with Operators() as cheap:
            assert looking.figures(2, last=True)
        with Operators() as features:
            looking._features(looking._bank)
    look, passed = (len(one.seen) / len(step.seen) for one in (cheap, features))
    assert 0.1 < look < 0.4 and 0.02 < passed < 0.15
    for images, ranks, batch, epochs, pictures in (
        (50_000, 1, 512, 1000, 7_000),
        (1_281_167, 32, 4096, 1000, 10_192),
        (1_281_167, 4, 4096, 1000, 10_192),
    ):
        milestone = passed * -(-pictures // (ranks * BATCH)) / (images // batch * -(-epochs // health.MILESTONES))
        assert look / steps_between(min(256, batch), batch / ranks, 1) + milestone < 0.01


class NoPredictor(BYOL):
    """BYOL as it collapses: the online network is asked for the target's projection itself."""

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.networks["online"]["predictor"] = torch.nn.Identity()


@pytest.fixture
def judged(monkeypatch, tmp_path):
    """Run the gate on a card, of a file or as a dict, and return its verdict."""

    def judge(card, *arguments) -> dict:
        path, output = tmp_path / "card.json", tmp_path / "verdict.json"
        path.write_text(card.read_text() if hasattr(card, "read_text") else json.dumps(card))
        output.unlink(missing_ok=True)
        words = ["--recipe", "cifar10", "--experiment", "mine", "--card", str(path), "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["health_gate.py", *words, *map(str, arguments)])
        try:
            health_gate.main()
        except UserError:
            assert not output.exists()
            raise
        return json.loads(output.read_text())

    return judge


def shaped(name: str, size: int) -> dict:
    """A recipe as tiny as the tests' own; a ResNet-50 needs 32 pixels."""
    test = {"resize": size + 1, "crop": size}
    return load_recipe(name, {**TINY, "augment": {"size": size}, "linear": {"epochs": 2, "batch": 8, "test": test}})


SHAPES = {"digits": 8, "cifar10": 8, "imagenet": 32}


@pytest.mark.parametrize(("name", "size"), SHAPES.items())
def test_a_run_without_a_predictor_is_stopped_at_its_first_boundary(run, judged, monkeypatch, name, size):
    """Whatever the recipe; the encoder's own spread and rank do not tell yet, and no bands are for it."""
    monkeypatch.setitem(METHODS.components, "byol", f"{__name__}:{NoPredictor.__name__}")
    bad = run(recipe=shaped(name, size))
    assert train(bad, 2)
    with pytest.raises(UserError, match=r"has collapsed at epoch 2.*projection_spread \S+ \(wanted at least 0\.3\)"):
        judged(bad.folder / "epoch_0002.json")
    verdict = judged(bad.folder / "epoch_0002.json", "--continue-after-collapse")
    assert verdict["collapsed"] and verdict["verdict"].startswith("goes on as told: has collapsed at epoch 2")


@pytest.mark.parametrize(("name", "size"), SHAPES.items())
def test_a_healthy_run_of_any_recipe_is_above_its_floors(run, judged, name, size):
    good = run(recipe=shaped(name, size))
    assert train(good, 2)
    verdict = judged(good.folder / "epoch_0002.json")
    assert verdict["verdict"].startswith("above its floors; not judged by bands: no bands are recorded in ")
    assert verdict["verdict"].endswith("; not measured: effective_rank")  # 43 images
    assert set(verdict["floors"]) == {"feature_spread", "effective_rank", "projection_spread"}


@pytest.mark.parametrize("features", [8, 32, 512])
def test_floors_of_an_encoder_hold_for_narrow_and_wide_ones(features):
    floors, pictures = encoder_floors(features), 4 * features
    random = torch.rand(pictures, features)  # positive, as after a ReLU: their common part takes most of the rank
    one_point = torch.rand(features) + 1e-4 * torch.randn(pictures, features)
    for encoded, below in ((random, []), (one_point, ["feature_spread", "effective_rank"])):
        figures = {"feature_spread": feature_spread(encoded), "effective_rank": effective_rank(encoded)}
        assert [one.figure for one in collapsed(figures, floors)] == below


def test_a_real_healthy_run_is_above_the_floors_at_every_epoch():
    """CIFAR-10, full width, batch 512, 173 epochs on an H100 in bf16: epochs 1, 9, 18, 45, 90, 173, and the lowest."""
    floors = encoder_floors(512)
    for spread, rank in [(0.601, None), (0.627, 155.3), (0.614, 171.7), (0.651, 240.3), (0.686, 271.2), (0.695, 280.3)]:
        figures = {"feature_spread": spread} | ({} if rank is None else {"effective_rank": rank})
        assert collapsed(figures, floors) == []
    highest_cosine = 0.881  # a single point as the prediction has at best sqrt(1 - spread^2)
    assert (1 - highest_cosine**2) ** 0.5 > PROJECTION_SPREAD_FLOOR


CARD = {"epoch": 10.0, "health": {"feature_spread": 0.7, "knn_top1": 50.0}, "floors": {"feature_spread": 0.02}}


def test_the_message_names_the_figure_its_floor_and_the_way_on(judged):
    card = {**CARD, "health": {"feature_spread": 0.0123, "knn_top1": 10.0}}
    with pytest.raises(UserError) as error:
        judged(card)
    for words in (
        "has collapsed at epoch 10, below its method's floor: feature_spread 0.0123 (wanted at least 0.02). ",
        "Its checkpoint is kept",
        "experiments.mine.continue_after_collapse: true in config.yaml",
        "raise its revision",
    ):
        assert words in str(error.value)
    assert "knn_top1" not in str(error.value)


def test_a_figure_that_is_no_number_stops_a_run_with_or_without_a_floor(judged):
    for floors in (CARD["floors"], {}):
        with pytest.raises(UserError, match=r"knn_top1 nan \(wanted a number\)"):
            judged({"epoch": 10.0, "health": {**CARD["health"], "knn_top1": float("nan")}, "floors": floors})
    with pytest.raises(UserError, match=r"feature_spread nan \(wanted at least 0\.02\)"):
        judged({**CARD, "health": {"feature_spread": float("nan")}})


def test_a_card_without_figures_or_floors_passes_and_the_verdict_says_so(judged):
    old = {"epoch": 10.0, "health": {"feature_spread": 0.001}}
    assert judged(old)["verdict"].startswith(
        "not judged by floors: its card is older than they are; not judged by bands"
    )
    assert judged({"epoch": 10.0})["verdict"] == "not judged: no figures were measured"
    missing = judged({**CARD, "floors": {**CARD["floors"], "effective_rank": 2.0}})
    assert missing["verdict"].endswith("; not measured: effective_rank")


def test_bands_narrow_the_floors(judged, tmp_path):
    path = tmp_path / "bands.yaml"
    figures = {"feature_spread": {"low": 0.5, "high": 0.9, "values": [0.7] * 3}}
    whole = {"recorded": {}, "seeds": [0, 1, 2], "recipe": {}, "boundaries": [{"epoch": 10, "figures": figures}]}
    path.write_text(yaml.safe_dump(whole))
    assert judged(CARD, "--bands", path)["verdict"] == "above its floors; within its band"
    with pytest.raises(
        UserError, match=r"run has left its band at epoch 10: feature_spread 0\.3 \(wanted 0\.5 to 0\.9\)"
    ):
        judged({**CARD, "health": {"feature_spread": 0.3}}, "--bands", path)
    with pytest.raises(
        UserError, match=r"has collapsed at epoch 10.* 0\.02\); it has left its band at epoch 10.* 0\.9\)"
    ):
        judged({**CARD, "health": {"feature_spread": 0.01}}, "--bands", path)


def test_bands_of_a_run_that_had_collapsed_are_not_recorded():
    cards = [{**CARD, "seed": seed, "fingerprint": "f", "numerics": {}} for seed in range(3)]
    assert record({10: cards}, [0, 1, 2], {})["boundaries"]
    cards[1] = {**cards[1], "health": {"feature_spread": 0.01, "knn_top1": 50.0}}
    with pytest.raises(
        UserError, match=r"epoch 10: seed 1 had collapsed, feature_spread 0\.01 \(wanted at least 0\.02\)"
    ):
        record({10: cards}, [0, 1, 2], {})


def test_a_band_is_a_prediction_interval():
    """t of 0.9995 with 4 degrees of freedom is 8.610 in any table; s = 1.5811."""
    found = band("feature_spread", [1.0, 2.0, 3.0, 4.0, 5.0])
    half = 8.610 * 1.58114 * 1.2**0.5
    assert found["low"] == pytest.approx(3 - half, abs=0.01) and found["high"] == pytest.approx(3 + half, abs=0.01)
    assert band("knn_top1", [90.0, 91.0, 92.0])["high"] is None


@pytest.fixture
def bands() -> dict:
    figures = {"feature_spread": {"low": 0.5, "high": 0.9, "values": [0.7] * 3}}
    figures["knn_top1"] = {"low": 80.0, "high": None, "values": [90.0] * 3}
    return {"boundaries": [{"epoch": 10, "figures": figures}], "recipe": {"epochs": 3, "model": {"width": 4}}}


@pytest.mark.parametrize(
    ("figures", "left"),
    [
        ({"feature_spread": 0.7, "knn_top1": 99.9}, []),
        ({"feature_spread": 0.01, "knn_top1": 9.0}, ["feature_spread", "knn_top1"]),
        ({"feature_spread": 0.95}, ["feature_spread"]),
        ({"feature_spread": float("nan")}, ["feature_spread"]),
    ],
)
def test_a_figure_outside_its_band_is_named(bands, figures, left):
    assert [one.figure for one in outside(figures, bands, 10)] == left
    assert outside(figures, bands, 20) == []  # an epoch that was not recorded


def test_bands_are_for_the_recipe_that_was_recorded_and_survive_keys_that_came_later(bands):
    assert recorded_for(bands, {"epochs": 3, "model": {"width": 4, "later": 1}, "linear": {}}) == []
    (difference,) = recorded_for(bands, {"epochs": 3, "model": {"width": 8}})
    assert "model.width" in difference and "8" in difference


def test_the_shipped_bands_are_for_the_shipped_recipes():
    files = sorted(BANDS.glob("*.yaml"))
    assert BANDS / "digits.yaml" in files
    for path in files:
        bands, recipe = read_bands(path), load_recipe(path.stem)
        assert recorded_for(bands, recipe) == [], f"{path}: record it again"
        assert len(bands["seeds"]) >= 3 and bands["recipe"].keys() <= pretraining_part(recipe).keys()
        for one in bands["boundaries"]:
            for name, figure in one["figures"].items():
                assert figure == band(name, figure["values"]) | {
                    key: pytest.approx(figure[key], rel=1e-2, abs=2e-3) if figure[key] is not None else None
                    for key in ("low", "high")
                }


def test_bands_of_two_seeds_are_refused(tmp_path, bands):
    path = tmp_path / "two.yaml"
    whole = {**bands, "recorded": {}, "seeds": [0, 1]}
    path.write_text(yaml.safe_dump(whole))
    with pytest.raises(UserError, match=r"two\.yaml: seeds"):
        read_bands(path)

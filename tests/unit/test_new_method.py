"""A method is one file, and one of its settings: SimSiam with a memory of its own."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from many_ranks import on_ranks
from runs import StopAfter, equal_states, on_cpu, state_of, train
from selfsup.engine.equal_ranks import _digests, check_equal_on_all_ranks
from selfsup.errors import PermanentError
from selfsup.methods import Method, Output
from selfsup.methods.byol import byol_loss
from selfsup.models import build_backbone, build_head, seeded_weights
from selfsup.models.head_settings import HeadSettings
from selfsup.recipe import RecipeError, load_recipe, pretraining_part
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import Settings
from selfsup.training.pretraining import Pretraining, Run
from tiny import TINY

pytestmark = pytest.mark.usefixtures("shallow")

HEAD = {"hidden": 16, "out": 8, "bias_before_bn": False, "bias_last": True}


class SimSiamSettings(Settings):
    projector: HeadSettings
    predictor: HeadSettings
    pull: float
    """how fast the centre follows"""


class SimSiam(Method):
    """Chen and He 2021: no target, the gradient stopped; and a centre that follows the projections, to be kept.

    Each rank sees the projections of its own images; the centre follows their mean over ranks, and so is one for all.
    """

    def __init__(self, settings, context):
        super().__init__(settings, context)
        norm = context.recipe.model.batch_norm
        with seeded_weights(context.seed, 0):
            backbone = build_backbone(context.recipe)
            projector = build_head(backbone.out_features, settings.projector, norm)
            predictor = build_head(settings.projector.out, settings.predictor, norm)
        self.networks = nn.ModuleDict({"backbone": backbone, "projector": projector, "predictor": predictor})
        self._centre = self._newest = torch.zeros(HEAD["out"])

    def schedules(self, step):
        return {"pull": self.settings.pull * step / self.context.total_steps}

    def loss(self, batch, step):
        projections = self.networks["projector"](self.networks["backbone"](torch.cat(batch.views)))
        predictions, wanted = self.networks["predictor"](projections), projections.detach() - self._centre
        (one, two), (first, second) = predictions.chunk(2), wanted.chunk(2)
        self._newest = self.context.ranks.mean(projections.detach().float().mean(0))
        length = projections.detach().norm(dim=1).mean()
        return Output((byol_loss(one, second) + byol_loss(two, first)) / 2, {"projection_length": length})

    def after_step(self, step):
        wanted = self._newest if step.skipped is None else torch.where(step.skipped, self._centre, self._newest)
        self._centre = self._centre.lerp(wanted, self.schedules(step.number)["pull"])

    def encoder(self):
        return self.networks["backbone"]

    def state_dict(self):
        return {**self.networks.state_dict(), "centre": self._centre}

    def load_state_dict(self, state):
        state = dict(state)
        self._centre = state.pop("centre").to(self._centre)
        self.networks.load_state_dict(state, strict=True)


OWN = {"method": "centred_simsiam", "centred_simsiam": {"projector": HEAD, "predictor": HEAD, "pull": 0.5}}
OVERRIDES = {**{key: value for key, value in TINY.items() if key != "byol"}, **OWN}


def add_method(patch: pytest.MonkeyPatch, method: type = SimSiam) -> None:
    """What `@METHODS.add("centred_simsiam", builds=...)` does to a class of settings, until the test has ended."""
    patch.setitem(METHODS.classes, "centred_simsiam", SimSiamSettings)
    patch.setitem(METHODS.components, "centred_simsiam", f"{__name__}:{method.__name__}")


@pytest.fixture
def centred_simsiam(monkeypatch):
    """The method and the overrides that choose it."""
    add_method(monkeypatch)
    return OVERRIDES


def run_of(folder, store, compute) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(load_recipe("digits", OVERRIDES), 0, 1, store, folder, compute, 60)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_trains_is_stopped_in_mid_epoch_and_continues_to_the_bit(centred_simsiam, tiny_store, tmp_path, precision):
    """In fp16, as on a V100, the first gradients overflow under the scaler: steps are skipped, and then none."""
    recipe = load_recipe("digits", centred_simsiam)
    assert "byol" not in recipe and "byol" not in pretraining_part(recipe)
    whole, parts = (run_of(tmp_path / name, tiny_store, on_cpu(precision=precision)) for name in ("whole", "parts"))
    assert train(whole, 4)
    assert not train(parts, 2, stop=StopAfter(3)) and train(parts, 2, 4)
    states = [state_of(run) for run in (whole, parts)]
    assert equal_states(*states) and states[0]["method"]["centre"].abs().sum() > 0
    assert states[0]["scaler"] == states[1]["scaler"] and states[0]["skipped"] == states[1]["skipped"]
    history = pd.read_csv(whole.folder / "history.csv")
    assert history["pull"].iloc[-1] > history["pull"].iloc[0] and (history["projection_length"] > 0).all()
    assert {"feature_spread", "alignment"} <= set(history) and "tau" not in history


def test_a_skipped_step_leaves_what_it_keeps_alone(centred_simsiam, tiny_store, tmp_path):
    training = Pretraining(run_of(tmp_path / "run", tiny_store, on_cpu(precision="fp16")))
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    centres = []
    for step in range(3):
        if step == 2:
            training.treatments[0].parameter.register_hook(lambda gradient: gradient * float("inf"))
        training.train_step(training.batches[step])
        centres.append(training.method.state_dict()["centre"].clone())
    assert training.skipped == 1 and not centres[0].equal(centres[1]) and centres[1].equal(centres[2])


class OwnSchedules(SimSiam):
    """Gives the predictor a tenth of the learning rate, moves the weight decay, and looks at the gradients."""

    def parameter_groups(self):
        return [
            replace(one, lr_scale=0.1) if one.name.startswith("predictor") else one
            for one in super().parameter_groups()
        ]

    def schedules(self, step):
        return super().schedules(step) | {"weight_decay": 0.001 * (step + 1)}

    def after_backward(self, step):
        first = self.parameter_groups()[0].parameter
        self.seen = {**getattr(self, "seen", {}), step.number: first.grad.clone()}


def test_a_rate_may_move_by_epochs_alone(tiny_store, tmp_path):
    """All five steps of an epoch have the rate of its first."""
    moving = {
        update: load_recipe("digits", {**TINY, "optimizer": {"warmup_epochs": 1, "lr_update": update}})
        for update in ("step", "epoch")
    }
    by_step, by_epoch = (Pretraining(Run(one, 0, 1, tiny_store, tmp_path, on_cpu(), 60)) for one in moving.values())
    for step in range(by_step.total_steps):
        assert by_epoch.learning_rate(step) == by_step.learning_rate(step // 5 * 5)


def test_a_group_may_have_its_own_rate_and_a_schedule_of_weight_decay(monkeypatch, tiny_store, tmp_path):
    add_method(monkeypatch, OwnSchedules)
    training = Pretraining(run_of(tmp_path / "run", tiny_store, on_cpu()))
    for step in range(3):
        training.train_step(training.batches[step])
        rate = training.learning_rate(step)
        groups = {(group["lr_scale"], group["lr"], group["weight_decay"]) for group in training.optimizer.param_groups}
        decay = 0.001 * (step + 1)
        assert groups == {(scale, rate * scale, decayed) for scale in (1.0, 0.1) for decayed in (0.0, decay)}
    assert sorted(training.method.seen) == [0, 1, 2]
    assert torch.equal(training.method.seen[2], training.treatments[0].parameter.grad)


class Careless(OwnSchedules):
    """What its loss returns is a number for each image."""

    def loss(self, batch, step):
        answer = super().loss(batch, step)
        return Output(answer.loss, {"lengths": answer.loss.repeat(4)})


def test_a_scalar_that_is_none_is_told_by_its_name(monkeypatch, tiny_store, tmp_path):
    add_method(monkeypatch, Careless)
    training = Pretraining(run_of(tmp_path / "run", tiny_store, on_cpu()))
    with pytest.raises(PermanentError, match=r"^centred_simsiam: lengths has the shape \[4\], wanted one number"):
        training.train_step(training.batches[0])


def test_a_schedule_of_weight_decay_that_nothing_feels_is_refused(monkeypatch, tiny_store, tmp_path):
    add_method(monkeypatch, OwnSchedules)
    recipe = load_recipe("digits", {**OVERRIDES, "optimizer": {"weight_decay": 0.0, "warmup_epochs": 1}})
    with pytest.raises(PermanentError, match=r"optimizer\.weight_decay is 0, so it has no effect"):
        Pretraining(Run(recipe, 0, 1, tiny_store, tmp_path, on_cpu(), 60))


def test_views_of_two_sizes_are_not_normalised_each_by_itself(centred_simsiam, tiny_store, tmp_path):
    views = {0: {"size": 6}}
    norm = {"model": {**OVERRIDES["model"], "batch_norm": {"statistics": "per_view"}}}
    recipe = load_recipe("digits", {**centred_simsiam, **norm, "augment": {**OVERRIDES["augment"], "views": views}})
    with pytest.raises(PermanentError, match=r"per_view and augment\.views differ in size"):
        Pretraining(Run(recipe, 0, 1, tiny_store, tmp_path, on_cpu(), 60))


OTHER_OPTIMIZERS = {
    "sgd": {"name": "sgd", "peak_lr": 0.1, "nesterov": True},
    "adamw": {"name": "adamw", "peak_lr": 0.001, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8},
}


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.long), "fp16"])
@pytest.mark.parametrize("name", OTHER_OPTIMIZERS)
def test_other_optimisers_are_stopped_in_mid_epoch_and_continue_to_the_bit(tiny_store, tmp_path, name, precision):
    recipe, states = load_recipe("digits", {**TINY, "optimizer": {**TINY["optimizer"], **OTHER_OPTIMIZERS[name]}}), []
    for stop in (None, StopAfter(3)):
        folder = tmp_path / str(stop is None)
        folder.mkdir()
        run = Run(recipe, 0, 1, tiny_store, folder, on_cpu(precision=precision), 60)
        assert train(run, 4, stop=stop) == (stop is None) and train(run, 4)
        states.append(state_of(run))
    one, other = states
    assert all(one["method"][key].equal(value) for key, value in other["method"].items())
    for key, buffers in one["optimizer"]["state"].items():
        assert all(buffers[name].equal(value) for name, value in other["optimizer"]["state"][key].items())


class OwnCentres(SimSiam):
    """A slip: the mean of this rank's images alone."""

    def loss(self, batch, step):
        answer = super().loss(batch, step)
        self._newest = self._newest + self.context.ranks.rank * 2.0**-20
        return answer


def _train_on_ranks(ranks, method, store, folder) -> tuple:
    """Whether it trained to the end of epoch 1 and what it kept then, or its error and the files it has written."""
    with pytest.MonkeyPatch.context() as patch:
        add_method(patch, method)
        folder.mkdir(exist_ok=True)
        run = run_of(folder, store, on_cpu(ranks, threads=1))
        try:
            return train(run, 1), state_of(run, 1)["method"]["centre"].tolist()
        except PermanentError as error:
            ranks.barrier()
            return str(error), sorted(str(path.relative_to(folder)) for path in folder.rglob("*.pt"))


def test_its_state_is_equal_on_two_ranks(tiny_store, tmp_path):
    """A boundary is written, and the first one of a job compares the ranks' states."""
    first, second = on_ranks(_train_on_ranks, 2, SimSiam, tiny_store, tmp_path / "run")
    assert first == second and first[0] is True and any(first[1])


def test_state_that_differs_between_ranks_ends_the_run_at_the_first_save_with_its_name(tiny_store, tmp_path):
    for told, files in on_ranks(_train_on_ranks, 2, OwnCentres, tiny_store, tmp_path / "run"):
        assert told.startswith("centre, of the method's state, differs between rank 0 and rank 1") and "\n" not in told
        assert files == []
    failed = json.loads((tmp_path / "run" / "failed.json").read_text())
    assert "centre" in failed["message"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda state: state["net"]["weight"].view(torch.int32)[1].add_(1), "net.weight"),
        (lambda state: state["net"]["bfloat"].neg_(), "net.bfloat"),  # of zeros: -0.0 == 0.0, other bits
        (lambda state: state["queue"][1].add_(1), "queue.1"),
        (lambda state: state["counts"].add_(1), "counts"),
        (lambda state: state.update(more=1), "more"),
        (lambda state: state, None),
    ],
)
def test_one_bit_of_a_nested_state_is_enough(change, name):
    """A rank of three in this process: `from_main` and `gather` give what the others would."""
    states = [
        {
            "net": {"weight": torch.ones(3), "bfloat": torch.zeros(2, 2, dtype=torch.bfloat16)},
            "queue": [torch.zeros(2), torch.zeros(2)],
            "counts": torch.tensor(7),
        }
        for _ in range(2)
    ]
    change(states[1])

    class Third:
        size = 3

        def from_main(self, value):
            return dict(_digests(states[0]))

        def gather(self, value):
            return [None, None, value]

    if name is None:
        check_equal_on_all_ranks(states[1], Third())
    else:
        with pytest.raises(PermanentError, match=rf"^{name}, of the method's state, .* rank 0 and rank 2"):
            check_equal_on_all_ranks(states[1], Third())


def test_the_block_is_wanted_by_its_method_and_by_no_other(centred_simsiam):
    with pytest.raises(RecipeError, match=r"method is 'centred_simsiam', wanted the block of that name .* found byol"):
        load_recipe("digits", {"method": "centred_simsiam"})
    with pytest.raises(RecipeError, match="'centred_simsiam' names no recipe key"):
        load_recipe("digits", {"centred_simsiam": centred_simsiam["centred_simsiam"]})
    with pytest.raises(RecipeError, match="centred_simsiam lacks the key 'pull'"):
        load_recipe("digits", {**centred_simsiam, "centred_simsiam": {"projector": HEAD, "predictor": HEAD}})

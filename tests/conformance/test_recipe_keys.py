"""Every key of a recipe changes what is computed. A new key without an entry here fails the first test."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache, reduce
from operator import eq

import pytest
import torch

from runs import evaluation, on_cpu
from selfsup.data.loader import CPU, Batches, ViewMaker
from selfsup.engine.saving import Saver
from selfsup.job.attempt import Attempt
from selfsup.models import initial_backbone
from selfsup.recipe import Recipe, canonical, check_recipe, load_recipe, merge, overridden
from selfsup.settings.described import leaves
from selfsup.settings.registries import METHODS
from selfsup.training.pretraining import Pretraining, Run
from tiny import BLOCKS, DROPPING_VIT, TINY, head

JITTER = {"p": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
BLUR = {"p": 1.0, "kernel": 3, "sigma": [0.5, 2.0], "padding": "reflect"}
SOLARIZE = {"p": 1.0, "threshold": 0.5}
# A view in which every operation happens, so that each of its numbers matters.
BUSY = {"flip": 0.5, "jitter": JITTER, "grayscale": 0.2, "blur": BLUR, "solarize": SOLARIZE}
BASE = merge(
    load_recipe("digits", TINY),
    {
        "epochs": 2,
        "augment": {"views": {0: BUSY, 1: BUSY}},
        "linear": {"train_view": BUSY, "further": [{"peak_lr": 0.1, "initial_weights": 1}]},
        "byol": {"predictor": {"hidden": 12}},
    },
)

# A change of each key of a view, as `augment.views` and `linear.train_view` have them.
VIEW = {
    "crop.scale": {"crop": {"scale": [0.6, 0.9]}},
    "crop.ratio": {"crop": {"ratio": [0.9, 1.1]}},
    "flip": {"flip": 1.0},
    "jitter": {"jitter": None},
    "jitter.p": {"jitter": {"p": 0.5}},
    "jitter.brightness": {"jitter": {"brightness": 0.1}},
    "jitter.contrast": {"jitter": {"contrast": 0.1}},
    "jitter.saturation": {"jitter": {"saturation": 0.1}},
    "jitter.hue": {"jitter": {"hue": 0.3}},
    "grayscale": {"grayscale": 1.0},
    "blur": {"blur": None},
    "blur.p": {"blur": {"p": 0.5}},
    "blur.kernel": {"blur": {"kernel": 5}},
    "blur.sigma": {"blur": {"sigma": [0.1, 0.4]}},
    "blur.padding": {"blur": {"padding": "zero"}},
    "solarize": {"solarize": None},
    "solarize.p": {"solarize": {"p": 0.5}},
    "solarize.threshold": {"solarize": {"threshold": 0.3}},
}
HEAD = {"hidden": {"hidden": 20}, "bias_before_bn": {"bias_before_bn": True}, "bias_last": {"bias_last": False}}
BOTH_OUT = {"byol": {"projector": {"out": 6}, "predictor": {"out": 6}}}  # one without the other is refused
SGD = {"optimizer": {"name": "sgd", "nesterov": False}}
ADAMW = {"optimizer": {"name": "adamw", "peak_lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}}
LAYERS = {"layers": [16, 8], "bias_before_bn": False, "bias_last": False, "last_batch_norm": "none"}
SIMCLR = {"method": "simclr", "simclr": {"projector": LAYERS, "temperature": 0.5, "loss_reduction": "mean"}}
METHOD = {name: {"method": name, name: block} for name, block in BLOCKS.items()}
# A change of each key of a head, in whatever method.
HEADS = {"layers": [12, 8], "bias_before_bn": True, "bias_last": True, "last_batch_norm": "with_scale"}


def of_heads(method: str, *heads: str) -> dict:
    """A change of each key of a method's heads, which have neither biases nor a last batch norm before it."""
    plain = {method: dict.fromkeys(heads, head(16, 8))}
    return {
        f"{method}.{one}.{key}": (overridden(METHOD[method], plain), {method: {one: {key: value}}})
        for one in heads
        for key, value in HEADS.items()
    }


SIZE = {"size": 32, "plain": {"resize": 32, "crop": 32, "interpolation": "bicubic"}}  # the authors' constants are for
EQUIMOD = {
    **SIMCLR,
    "method": "equimod",
    "equimod": {
        "wraps": "simclr",
        "projector": LAYERS,
        "parameter_encoder": {**LAYERS, "layers": [6], "last_batch_norm": "with_scale_and_shift"},
        "predictor": {**LAYERS, "layers": [10, 8]},
        "temperature": 0.2,
        "weight": 1.0,
        "negatives": "all",
        "parameters": "measured",
    },
    "augment": {"plain": {"resize": 8, "crop": 8, "interpolation": "bicubic"}},
}


def equimod_with(head: str, **changes) -> dict:
    """EQUIMOD with other values of one of its heads."""
    block = EQUIMOD["equimod"]
    return {**EQUIMOD, "equimod": {**block, head: {**block[head], **changes}}}


BESIDE_BYOL = {"equimod": {"wraps": "byol"}, "byol": BASE["byol"]}
# What pretraining computes depends on these; (a change, or the recipe to change and a change).
PRETRAINING = {
    "epochs": {"epochs": 3},
    "global_batch": {"global_batch": 6},
    "micro_batches": {"micro_batches": 2},
    "model.backbone": {"model": {"backbone": "resnet34"}},
    "model.width": {"model": {"width": 6}},
    "model.stem.kernel": {"model": {"stem": {"kernel": 5}}},
    "model.stem.stride": {"model": {"stem": {"stride": 2}}},
    "model.stem.padding": {"model": {"stem": {"padding": 2}}},
    "model.stem.max_pool": {"model": {"stem": {"max_pool": True}}},
    "model.stem.initial_weights": {"model": {"stem": {"initial_weights": "torch"}}},
    "model.padding": {"model": {"padding": "same"}},
    "model.zero_init_residual": {"model": {"zero_init_residual": False}},
    "model.drop_path": (DROPPING_VIT, {"model": {"drop_path": 0.2}}),
    "model.positions": (DROPPING_VIT, {"model": {"positions": "sin_cos"}}),
    "model.freeze_patch_projection": (DROPPING_VIT, {"model": {"freeze_patch_projection": True}}),
    "model.arguments": (DROPPING_VIT, {"model": {"arguments": {"depth": 1}}}),
    "model.batch_norm.statistics": {"model": {"batch_norm": {"statistics": "per_view"}}},
    "model.batch_norm.momentum": {"model": {"batch_norm": {"momentum": 0.2}}},
    "model.batch_norm.eps": {"model": {"batch_norm": {"eps": 1e-3}}},
    **{
        f"byol.{head}.{key}": {"byol": {head: change}}
        for head in ("projector", "predictor")
        for key, change in HEAD.items()
    },
    "byol.projector.out": BOTH_OUT,
    "byol.predictor.out": BOTH_OUT,
    "byol.tau_base": {"byol": {"tau_base": 0.9}},
    "byol.average_update": {"byol": {"average_update": "after_step"}},
    "byol.average_buffers": {"byol": {"average_buffers": True}},
    "byol.target_batch_norm": ({"byol": {"average_buffers": True}}, {"byol": {"target_batch_norm": "running"}}),
    "byol.target_init": {"byol": {"target_init": "independent"}},
    "byol.loss_reduction": {"byol": {"loss_reduction": "mean"}},
    "method": SIMCLR,
    "simclr.projector.layers": (SIMCLR, {"simclr": {"projector": {"layers": [12, 8]}}}),
    "simclr.projector.bias_before_bn": (SIMCLR, {"simclr": {"projector": {"bias_before_bn": True}}}),
    "simclr.projector.bias_last": (SIMCLR, {"simclr": {"projector": {"bias_last": True}}}),
    "simclr.projector.last_batch_norm": (SIMCLR, {"simclr": {"projector": {"last_batch_norm": "with_scale"}}}),
    "simclr.temperature": (SIMCLR, {"simclr": {"temperature": 0.2}}),
    "simclr.loss_reduction": (SIMCLR, {"simclr": {"loss_reduction": "sum"}}),
    **of_heads("simsiam", "projector", "predictor"),
    "simsiam.predictor_lr": (METHOD["simsiam"], {"simsiam": {"predictor_lr": "scheduled"}}),
    **of_heads("barlow_twins", "projector"),
    "barlow_twins.redundancy": (METHOD["barlow_twins"], {"barlow_twins": {"redundancy": 0.1}}),
    "barlow_twins.loss_scale": (METHOD["barlow_twins"], {"barlow_twins": {"loss_scale": 0.1}}),
    "barlow_twins.bias_and_norm_lr_scale": (METHOD["barlow_twins"], {"barlow_twins": {"bias_and_norm_lr_scale": 1.0}}),
    **of_heads("vicreg", "projector"),
    **{f"vicreg.{key}": (METHOD["vicreg"], {"vicreg": {key: 2.0}}) for key in ("invariance", "variance", "covariance")},
    **of_heads("moco_v3", "projector", "predictor"),
    "moco_v3.temperature": (METHOD["moco_v3"], {"moco_v3": {"temperature": 0.5}}),
    "moco_v3.momentum_base": (METHOD["moco_v3"], {"moco_v3": {"momentum_base": 0.5}}),
    "equimod.wraps": (EQUIMOD, BESIDE_BYOL),
    **{
        f"equimod.{head}.{key}": (equimod_with(head, **before), {"equimod": {head: change}})
        for head, width in {"projector": 8, "parameter_encoder": 6, "predictor": 8}.items()
        for key, before, change in (
            ("layers", {}, {"layers": [12, width]}),
            ("bias_before_bn", {"layers": [10, width]}, {"bias_before_bn": True}),
            ("bias_last", {"last_batch_norm": "none"}, {"bias_last": True}),
            ("last_batch_norm", {"last_batch_norm": "none"}, {"last_batch_norm": "with_scale"}),
        )
    },
    "equimod.temperature": (EQUIMOD, {"equimod": {"temperature": 0.5}}),
    "equimod.weight": (EQUIMOD, {"equimod": {"weight": 0.5}}),
    "equimod.negatives": (EQUIMOD, {"equimod": {"negatives": "views_of_other_images"}}),
    "equimod.parameters": ({**EQUIMOD, "augment": SIZE}, {"equimod": {"parameters": "authors"}}),
    "optimizer.name": SGD,
    "optimizer.nesterov": (SGD, {"optimizer": {"nesterov": True}}),
    "optimizer.beta1": (ADAMW, {"optimizer": {"beta1": 0.8}}),
    "optimizer.beta2": (ADAMW, {"optimizer": {"beta2": 0.9}}),
    "optimizer.eps": (ADAMW, {"optimizer": {"eps": 1e-3}}),
    "optimizer.peak_lr": {"optimizer": {"peak_lr": 1.0}},
    "optimizer.warmup_epochs": {"optimizer": {"warmup_epochs": 0}},
    "optimizer.lr_start_factor": {"optimizer": {"lr_start_factor": 0.1}},
    "optimizer.lr_floor": {"optimizer": {"lr_floor": 0.1}},
    "optimizer.lr_update": {"optimizer": {"lr_update": "epoch"}},
    "optimizer.cosine_extra_epochs": {"optimizer": {"cosine_extra_epochs": 1}},
    "optimizer.momentum": {"optimizer": {"momentum": 0.5}},
    "optimizer.weight_decay": {"optimizer": {"weight_decay": 1e-3}},
    "optimizer.trust_coefficient": {"optimizer": {"trust_coefficient": 2e-3}},
    "optimizer.clip_trust": {"optimizer": {"clip_trust": True}},
    "optimizer.lars_weight": {"optimizer": {"lars_weight": 0.9}},
    "optimizer.exclude_from_lars": {"optimizer": {"exclude_from_lars": ["norm"]}},
    "optimizer.exclude_from_weight_decay": (  # without a decay nothing is excluded from it
        {"optimizer": {"weight_decay": 1e-3}},
        {"optimizer": {"exclude_from_weight_decay": []}},
    ),
    "optimizer.lr_in_momentum": {"optimizer": {"lr_in_momentum": False}},
    "augment.size": {"augment": {"size": 10}},
    "augment.interpolation": {"augment": {"interpolation": "bilinear"}},
    "augment.antialias": {"augment": {"antialias": False}},
    "augment.quantize": {"augment": {"quantize": "uint8"}},
    "augment.jitter_operations": {"augment": {"jitter_operations": "official"}},
    "augment.mean": {"augment": {"mean": [0.5, 0.5, 0.5]}},
    "augment.std": {"augment": {"std": [0.2, 0.2, 0.2]}},
    "augment.views.*.size": {"augment": {"views": {0: {"size": 10}, 1: {"size": 10}}}},  # BYOL wants one size
    **{f"augment.views.*.{key}": {"augment": {"views": {1: change}}} for key, change in VIEW.items()},
}
EVALUATION = {
    "linear.epochs": {"linear": {"epochs": 1}},
    "linear.batch": {"linear": {"batch": 6}},
    "linear.peak_lr": {"linear": {"peak_lr": 0.1}},
    "linear.lr_floor": {"linear": {"lr_floor": 0.1}},
    "linear.cosine_extra_epochs": {"linear": {"cosine_extra_epochs": 1}},
    "linear.momentum": {"linear": {"momentum": 0.8}},
    "linear.nesterov": {"linear": {"nesterov": False}},
    "linear.weight_decay": {"linear": {"weight_decay": 1e-2}},
    "linear.drop_last": {"linear": {"drop_last": False}},
    "linear.test.resize": {"linear": {"test": {"resize": 11}}},
    "linear.test.crop": {"linear": {"test": {"crop": 7}}},
    "linear.test.interpolation": {"linear": {"test": {"interpolation": "bilinear"}}},
    "linear.test_precision": {"linear": {"test_precision": "compute"}},
    "linear.further.*.peak_lr": {"linear": {"further": {0: {"peak_lr": 0.4}}}},
    "linear.further.*.initial_weights": {"linear": {"further": {0: {"initial_weights": 2}}}},
    "linear.held_out": {"linear": {"held_out": 9}},
    **{f"linear.train_view.{key}": {"linear": {"train_view": change}} for key, change in VIEW.items()},
}
# BYOL does not look at the unaugmented picture: these change what a method that does is given.
PLAIN = {"augment": {"plain": {"resize": 9, "crop": 8, "interpolation": "bicubic"}}}
UNAUGMENTED = {
    "augment.plain": PLAIN,
    "augment.plain.resize": (PLAIN, {"augment": {"plain": {"resize": None}}}),
    "augment.plain.crop": (PLAIN, {"augment": {"plain": {"crop": 7}}}),
    "augment.plain.interpolation": (PLAIN, {"augment": {"plain": {"interpolation": "bilinear"}}}),
}


def keys_of_recipes():
    """Every value of every recipe, the methods' own ones included."""
    return [*leaves(Recipe), *(leaf for name, block in METHODS.items() for leaf in leaves(block, f"{name}."))]


def test_every_key_has_an_entry_here_and_a_meaning():
    found = keys_of_recipes()
    assert {leaf.path for leaf in found} == {*PRETRAINING, *EVALUATION, *UNAUGMENTED}
    assert [leaf.path for leaf in found if not leaf.meaning] == []


def test_no_key_may_be_left_out_but_those_that_came_later():
    assert {leaf.path for leaf in keys_of_recipes() if leaf.optional} == {
        "model.padding",
        "model.stem.initial_weights",
        "model.drop_path",
        "model.arguments",
        "model.positions",
        "model.freeze_patch_projection",
        "optimizer.lr_update",
        "optimizer.clip_trust",
        "optimizer.cosine_extra_epochs",
        "linear.cosine_extra_epochs",
        "augment.jitter_operations",
        "augment.views.*.size",
        "augment.plain",
        "linear.further.*.initial_weights",
        "linear.held_out",
    }


def digest(tensors) -> str:
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(repr(tuple(tensor.shape)).encode() + tensor.detach().contiguous().numpy().tobytes())
    return hashed.hexdigest()


class Trained(Sequence):
    """The digests of both networks after each of the warm-up's five steps and two more, trained as far as is asked for.

    Two that are compared are trained step by step until they differ; equal ones have been equal after all seven steps.
    """

    def __init__(self, training: Pretraining):
        self.training, self.digests = training, []

    def __len__(self) -> int:
        return 7

    def __getitem__(self, step: int) -> str:
        if step >= len(self):
            raise IndexError(step)
        while len(self.digests) <= step:
            self.training.train_step(self.training.batches[len(self.digests)])
            self.digests.append(digest(self.training.method.networks.state_dict().values()))
        return self.digests[step]

    def __eq__(self, other: object) -> bool:
        return all(map(eq, self, other))


@pytest.fixture(scope="module")
def trained(shallow, tiny_store, tmp_path_factory):
    """A function of changes: what was trained."""

    def train(recipe: dict) -> Trained:
        folder = tmp_path_factory.mktemp("run")
        run = Run(recipe, seed=0, revision=1, store=tiny_store, folder=folder, compute=on_cpu(), checkpoint_minutes=60)
        return Trained(Pretraining(run))

    return remembering(train)


@pytest.fixture(scope="module")
def evaluated(shallow, tiny_store, tmp_path_factory):
    """A function of changes: the digest of a linear evaluation's classifiers, losses, accuracies, test features."""

    def evaluate(recipe: dict) -> str:
        folder = tmp_path_factory.mktemp("evaluation")
        encoder = initial_backbone(recipe, 0).eval().requires_grad_(False)
        # bf16, so that a test in fp32 differs from one in the precision of computing.
        one = evaluation(encoder, tiny_store, recipe, compute=on_cpu(precision="bf16"))
        with Attempt(folder, stage="linear evaluation", goal="its end", fingerprint="a test") as attempt:
            rows = list(one.run(attempt, Saver(one.compute.ranks, attempt, 60), folder / "partial"))
        figures = [[row[key] for key in ("epoch", "lr", "train_loss", "top1", "top5")] for row in rows]
        classifiers = [*one._classifier.state_dict().values(), *one._further.state_dict().values()]
        return digest([torch.tensor(figures), *classifiers, one._test_features])

    return remembering(evaluate)


@pytest.fixture(scope="module")
def unaugmented(tiny_store):
    """A function of changes: the digest of the unaugmented pictures that a method is given."""

    def make(recipe: dict) -> str:
        batch = Batches(tiny_store.train, recipe, seed=0, stage="pretrain")[0]
        pictures = ViewMaker(tiny_store.train, recipe, CPU)(batch).plain
        return digest([] if pictures is None else [pictures])

    return remembering(make)


def remembering(compute):
    """A function of changes to BASE that computes each recipe once."""
    known = cache(lambda text: compute(check_recipe(json.loads(text), "a test")))
    return lambda *changes: known(canonical(reduce(overridden, changes, BASE)))


def pair(entry) -> tuple[dict, dict]:
    return entry if isinstance(entry, tuple) else ({}, entry)


@pytest.mark.parametrize("key", PRETRAINING)
def test_a_changed_key_changes_pretraining(key, trained):
    before, change = pair(PRETRAINING[key])
    assert trained(before, change) != trained(before)


@pytest.mark.parametrize("view", [{"blur": {"kernel": None}}, {"blur": {"padding": "edge"}}])
def test_each_kind_of_blur_is_another(view, trained):
    assert trained({"augment": {"views": {1: view}}}) != trained()


@pytest.mark.parametrize("key", VIEW)
def test_a_changed_key_of_the_first_view_changes_pretraining(key, trained):
    assert trained({"augment": {"views": {0: VIEW[key]}}}) != trained()


@pytest.mark.parametrize("key", UNAUGMENTED)
def test_a_changed_key_changes_the_unaugmented_picture(key, unaugmented):
    before, change = pair(UNAUGMENTED[key])
    assert unaugmented(before, change) != unaugmented(before)


def test_the_unaugmented_picture_changes_no_training_that_does_not_look_at_it(trained):
    assert trained(PLAIN) == trained()


@pytest.mark.parametrize("key", EVALUATION)
def test_a_changed_key_changes_the_linear_evaluation(key, evaluated):
    before, change = pair(EVALUATION[key])
    assert evaluated(before, change) != evaluated(before)


def test_unchanged_keys_change_nothing(trained, evaluated):
    """So that a difference above is the key's. The digest is of a second run, not of a remembered one."""
    assert trained({"linear": {"epochs": 1}}) == trained()
    assert evaluated({"epochs": 3, "optimizer": {"peak_lr": 1.0}, "byol": {"tau_base": 0.9}}) == evaluated()

"""The recipes of SimSiam, Barlow Twins, VICReg and MoCo v3 against their sources: every value, head and rate.

All is written down here a second time, from the official codes (facebookresearch/simsiam at a7bc177, barlowtwins at
8e8d284, vicreg at 4e12602, moco-v3 at c349e6e), from appendix D of SimSiam's paper, and from solo-learn's scripts for
CIFAR-10 with the code that they configure. Networks are built without memory: shapes and names are all that counts.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from selfsup.methods import build_method
from selfsup.models import BatchNorm
from selfsup.optim import optimizer_groups
from selfsup.recipe import flattened, load_recipe
from selfsup.training.pretraining import Pretraining

# --- values -----------------------------------------------------------------------------------------------------------

RESNET50 = {
    "model.backbone": "resnet50",
    "model.width": 64,
    "model.stem": {"kernel": 7, "stride": 2, "padding": 3, "max_pool": True, "initial_weights": "resnet"},
    "model.padding": "symmetric",
    "model.zero_init_residual": True,
}
RESNET18 = {
    **RESNET50,
    "model.backbone": "resnet18",
    "model.stem": {"kernel": 3, "stride": 1, "padding": 1, "max_pool": False, "initial_weights": "resnet"},
}
SOLO_RESNET18 = {
    **RESNET18,
    "model.stem": {"kernel": 3, "stride": 1, "padding": 2, "max_pool": False, "initial_weights": "resnet"},
    "model.zero_init_residual": False,
}
# timm's ViT-S with what vits.py and --stop-grad-conv1 change.
VIT_SMALL = {
    "model.backbone": "timm/vit_small_patch16_224",
    "model.arguments": {"num_heads": 12, "weight_init": "moco"},
    "model.drop_path": 0.0,
    "model.positions": "sin_cos",
    "model.freeze_patch_projection": True,
}
# Each view is a forward pass of its own; torch's batch norm; torchvision's transforms of PIL pictures.
ALL = {
    "micro_batches": 1,
    "model.batch_norm": {"statistics": "per_view", "momentum": 0.1, "eps": 1e-5},
    "augment.antialias": True,
    "augment.quantize": "uint8",
    "augment.jitter_operations": "torchvision",
    "augment.plain": None,
}
OF_IMAGENET = {"augment.size": 224, "augment.mean": [0.485, 0.456, 0.406], "augment.std": [0.229, 0.224, 0.225]}
OF_CIFAR10 = {"augment.size": 32, "augment.mean": [0.4914, 0.4822, 0.4465]}
REPORTS_STD, SOLO_STD = {"augment.std": [0.247, 0.243, 0.261]}, {"augment.std": [0.247, 0.2435, 0.2616]}
BILINEAR, BICUBIC = ({"augment.interpolation": name} for name in ("bilinear", "bicubic"))

SCHEDULE = {"lr_start_factor": 0.0, "lr_floor": 0.0, "lr_update": "step", "cosine_extra_epochs": 0}
SGD = {"name": "sgd", "momentum": 0.9, "nesterov": False, "exclude_from_weight_decay": [], **SCHEDULE}
NEITHER = {"exclude_from_lars": ["bias", "norm"], "exclude_from_weight_decay": ["bias", "norm"]}
LARS = {"name": "lars", "momentum": 0.9, "lr_in_momentum": False, "lars_weight": 1.0, **NEITHER, **SCHEDULE}
LARS |= {"warmup_epochs": 10}
FACEBOOK_LARS = {**LARS, "trust_coefficient": 1e-3, "clip_trust": False, "weight_decay": 1e-6}
SOLO_LARS = {**LARS, "trust_coefficient": 0.02, "clip_trust": True, "peak_lr": 0.3, "lr_start_factor": 3e-5 / 0.3}
ADAMW = {"name": "adamw", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "exclude_from_weight_decay": [], **SCHEDULE}


def views(scale: float, saturation: float, blur: tuple[float, float], solarize: tuple[float, float]) -> dict:
    """What the two views are made by. scale: a crop's least area; saturation; the two views' chances of the others."""
    found = {}
    for number in (0, 1):
        found[f"augment.views.{number}"] = {
            "size": None,
            "crop": {"scale": [scale, 1.0], "ratio": [3 / 4, 4 / 3]},
            "flip": 0.5,
            "jitter": {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": saturation, "hue": 0.1},
            "grayscale": 0.2,
            # Pillow's, whose kernel follows from sigma
            "blur": {"p": blur[number], "kernel": None, "sigma": [0.1, 2.0], "padding": "edge"},
            "solarize": {"p": solarize[number], "threshold": 128 / 255},
        }
        for name, chance in (("blur", blur[number]), ("solarize", solarize[number])):
            if not chance:
                found[f"augment.views.{number}"][name] = None
    return found


BYOLS = {"blur": (1.0, 0.1), "solarize": (0.0, 0.2)}
NONE = (0.0, 0.0)


def head(*layers: int, biases: tuple[bool, bool] = (False, False), last: str = "none") -> dict:
    """biases: of the layers before a batch norm, of the last."""
    return {"layers": list(layers), "bias_before_bn": biases[0], "bias_last": biases[1], "last_batch_norm": last}


SIMSIAM = {
    "projector": head(2048, 2048, 2048, last="without_affine"),
    "predictor": head(512, 2048, biases=(False, True)),
    "predictor_lr": "constant",
}
MOCO = {
    "projector": head(4096, 256, last="without_affine"),
    "predictor": head(4096, 256),
    "momentum_base": 0.99,
}
VALUES = {
    # main_simsiam.py: rate 0.05 x 512 / 256, by epoch; one weight decay for all parameters
    "simsiam_imagenet": {
        **{"method": "simsiam", "epochs": 100, "global_batch": 512, "simsiam": SIMSIAM},
        "optimizer": {**SGD, "peak_lr": 0.1, "lr_update": "epoch", "warmup_epochs": 0, "weight_decay": 1e-4},
        **{**RESNET50, **OF_IMAGENET, **BILINEAR, **views(0.2, 0.4, blur=(0.5, 0.5), solarize=NONE)},
    },
    # the paper, D: rate 0.03 x 512 / 256, two layers, no blur
    "simsiam_cifar10": {
        **{"method": "simsiam", "epochs": 800, "global_batch": 512},
        "simsiam": {**SIMSIAM, "projector": head(2048, 2048, last="without_affine")},
        "optimizer": {**SGD, "peak_lr": 0.06, "lr_update": "epoch", "warmup_epochs": 0, "weight_decay": 5e-4},
        **{**RESNET18, **OF_CIFAR10, **REPORTS_STD, **BILINEAR, **views(0.2, 0.4, blur=NONE, solarize=NONE)},
    },
    # simsiam.yaml, augmentations/symmetric_weak.yaml: rate 0.5 x 256 / 256, from 3e-5
    "simsiam_cifar10_solo": {
        **{"method": "simsiam", "epochs": 1000, "global_batch": 256, "simsiam": SIMSIAM},
        "optimizer": {**SGD, "peak_lr": 0.5, "lr_start_factor": 3e-5 / 0.5, "warmup_epochs": 10, "weight_decay": 1e-5},
        **{**SOLO_RESNET18, **OF_CIFAR10, **SOLO_STD, **BICUBIC, **views(0.08, 0.4, blur=(0.5, 0.5), solarize=NONE)},
    },
    # main.py: rates 0.2 and 0.0048 x 2048 / 256
    "barlow_twins_imagenet": {
        **{"method": "barlow_twins", "epochs": 1000, "global_batch": 2048},
        "barlow_twins": {
            "projector": head(8192, 8192, 8192),
            "redundancy": 0.0051,
            "loss_scale": 1.0,
            "bias_and_norm_lr_scale": 0.0048 / 0.2,
        },
        "optimizer": {**FACEBOOK_LARS, "peak_lr": 1.6, "lr_floor": 1.6 / 1000},
        **{**RESNET50, **OF_IMAGENET, **BICUBIC, **views(0.08, 0.2, **BYOLS)},
    },
    # barlow.yaml, augmentations/asymmetric.yaml
    "barlow_twins_cifar10_solo": {
        **{"method": "barlow_twins", "epochs": 1000, "global_batch": 256},
        "barlow_twins": {
            "projector": head(2048, 2048, 2048, biases=(True, True)),
            "redundancy": 0.0051,
            "loss_scale": 0.1,
            "bias_and_norm_lr_scale": 1.0,
        },
        "optimizer": {**SOLO_LARS, "weight_decay": 1e-4},
        **{**SOLO_RESNET18, **OF_CIFAR10, **SOLO_STD, **BICUBIC, **views(0.08, 0.2, NONE, solarize=(0.0, 0.2))},
    },
    # main_vicreg.py: rate 0.2 x 2048 / 256
    "vicreg_imagenet": {
        **{"method": "vicreg", "epochs": 1000, "global_batch": 2048},
        "vicreg": {
            "projector": head(8192, 8192, 8192, biases=(True, False)),
            "invariance": 25.0,
            "variance": 25.0,
            "covariance": 1.0,
        },
        "optimizer": {**FACEBOOK_LARS, "peak_lr": 1.6, "lr_floor": 1.6 / 1000},
        **{**RESNET50, **OF_IMAGENET, **BICUBIC, **views(0.08, 0.2, **BYOLS)},
    },
    # vicreg.yaml; losses/vicreg.py adds the views' variance terms, where the official code takes their mean
    "vicreg_cifar10_solo": {
        **{"method": "vicreg", "epochs": 1000, "global_batch": 256},
        "vicreg": {
            "projector": head(2048, 2048, 2048, biases=(True, True)),
            "invariance": 25.0,
            "variance": 2 * 25.0,
            "covariance": 1.0,
        },
        "optimizer": {**SOLO_LARS, "weight_decay": 1e-4},
        **{**SOLO_RESNET18, **OF_CIFAR10, **SOLO_STD, **BICUBIC, **views(0.2, 0.2, NONE, solarize=(0.1, 0.1))},
    },
    # CONFIG.md, 100 epochs: main_moco.py's defaults with --crop-min=.2; rate 0.6 x 4096 / 256
    "moco_v3_imagenet": {
        **{"method": "moco_v3", "epochs": 100, "global_batch": 4096, "moco_v3": {**MOCO, "temperature": 1.0}},
        "optimizer": {**FACEBOOK_LARS, "peak_lr": 9.6},
        **{**RESNET50, **OF_IMAGENET, **BILINEAR, **views(0.2, 0.2, **BYOLS)},
    },
    # CONFIG.md, ViT-Small on 32 GPUs: rate 1.5e-4 x 4096 / 256
    "moco_v3_vit_small_imagenet": {
        **{"method": "moco_v3", "epochs": 300, "global_batch": 4096},
        "moco_v3": {
            "projector": head(4096, 4096, 256, last="without_affine"),
            "predictor": head(4096, 256, last="without_affine"),
            "temperature": 0.2,
            "momentum_base": 0.99,
        },
        "optimizer": {**ADAMW, "peak_lr": 2.4e-3, "warmup_epochs": 40, "weight_decay": 0.1},
        **{**VIT_SMALL, **OF_IMAGENET, **BILINEAR, **views(0.08, 0.2, **BYOLS)},
    },
    # mocov3.yaml, augmentations/asymmetric.yaml
    "moco_v3_cifar10_solo": {
        **{"method": "moco_v3", "epochs": 1000, "global_batch": 256, "moco_v3": {**MOCO, "temperature": 0.2}},
        "optimizer": {**SOLO_LARS, "weight_decay": 1e-6},
        **{**SOLO_RESNET18, **OF_CIFAR10, **SOLO_STD, **BICUBIC, **views(0.08, 0.2, NONE, solarize=(0.0, 0.2))},
    },
}


@pytest.mark.parametrize("name", VALUES)
def test_a_recipe_has_its_sources_values_and_no_others(name):
    """All but those of the linear evaluation, which is the report's and has tests of its own."""
    found = {key: value for key, value in flattened(load_recipe(name)).items() if not key.startswith("linear.")}
    wanted = {}
    for key, value in {**ALL, **VALUES[name]}.items():
        wanted |= flattened(value, key)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        close = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
        assert found[key] == close, key


# --- networks ---------------------------------------------------------------------------------------------------------


def built(name: str, steps: int = 1):
    with torch.device("meta"):
        return build_method(load_recipe(name), seed=0, total_steps=steps)


def described(network: nn.Sequential) -> list[str]:
    """Each layer in a word: a linear layer's sizes, "+" with a bias; a batch norm's, "!" if it learns no scale."""
    words = []
    for layer in network:
        if isinstance(layer, nn.Linear):
            words.append(f"{layer.in_features}-{layer.out_features}" + "+" * (layer.bias is not None))
        elif isinstance(layer, BatchNorm):
            words.append(f"BN_{layer.num_features}" + "!" * (not layer.weight.requires_grad))
        else:
            words.append(type(layer).__name__)
    return words


# Heads, and the numbers that learn in them. of_code: builder.py, main.py, main_vicreg.py; solo/methods/*.py
HEADS = {
    "simsiam_imagenet": {
        "projector": ("2048-2048 BN_2048 ReLU 2048-2048 BN_2048 ReLU 2048-2048 BN_2048!", 12_591_104),
        "predictor": ("2048-512 BN_512 ReLU 512-2048+", 2_100_224),
    },
    "simsiam_cifar10": {
        "projector": ("512-2048 BN_2048 ReLU 2048-2048 BN_2048!", 5_246_976),
        "predictor": ("2048-512 BN_512 ReLU 512-2048+", 2_100_224),
    },
    "simsiam_cifar10_solo": {
        "projector": ("512-2048 BN_2048 ReLU 2048-2048 BN_2048 ReLU 2048-2048 BN_2048!", 9_445_376),
        "predictor": ("2048-512 BN_512 ReLU 512-2048+", 2_100_224),
    },
    "barlow_twins_cifar10_solo": {
        "projector": ("512-2048+ BN_2048 ReLU 2048-2048+ BN_2048 ReLU 2048-2048+", 9_451_520),
    },
    "vicreg_cifar10_solo": {
        "projector": ("512-2048+ BN_2048 ReLU 2048-2048+ BN_2048 ReLU 2048-2048+", 9_451_520),
    },
    "moco_v3_cifar10_solo": {
        "projector": ("512-4096 BN_4096 ReLU 4096-256 BN_256!", 3_153_920),
        "predictor": ("256-4096 BN_4096 ReLU 4096-256", 2_105_344),
    },
}
RESNETS = {"imagenet": 23_508_032, "cifar10": 11_168_832}  # torchvision's without classifiers; the latter's stem 3 x 3


@pytest.mark.parametrize("name", HEADS)
def test_the_heads_have_their_sources_layers_and_sizes(name):
    method = built(name)
    for network, (layers, numbers) in HEADS[name].items():
        assert described(method.networks[network]) == layers.split(), network
        learned = [one.parameter for one in method.parameter_groups() if one.name.startswith(f"{network}.")]
        assert sum(parameter.numel() for parameter in learned) == numbers, network
    whole = sum(one.parameter.numel() for one in method.parameter_groups())
    backbone = RESNETS["imagenet" if name.endswith("imagenet") else "cifar10"]
    assert whole == backbone + sum(numbers for _, numbers in HEADS[name].values())
    others = {"momentum": ["backbone", "projector"]} if name.startswith("moco") else {}
    assert {key: list(value) for key, value in method.networks.items() if key in others} == others
    assert set(method.networks) == {"backbone", *HEADS[name], *others}


@pytest.mark.parametrize(("name", "side"), [("simsiam_cifar10", 4), ("simsiam_cifar10_solo", 5)])
def test_solo_learns_stem_pads_by_two_so_that_the_last_maps_have_five_pixels(name, side):
    backbone = built(name).encoder()
    last = nn.Sequential(*list(backbone.children())[:-2])
    assert last(torch.empty(2, 3, 32, 32, device="meta")).shape[1:] == (512, side, side)


# --- rates, momentum and decay of the whole run -----------------------------------------------------------------------


class FullRun(Pretraining):
    """What sets a step's rates, without the images and the memory of a training: a run of so many steps an epoch."""

    def __init__(self, name: str, steps_per_epoch: int):
        recipe = load_recipe(name)
        self.run, self.steps_per_epoch = SimpleNamespace(recipe=recipe), steps_per_epoch
        self.total_steps = recipe["epochs"] * steps_per_epoch
        self.method = built(name, self.total_steps)
        groups = optimizer_groups(self.method.parameter_groups())
        self.optimizer = SimpleNamespace(param_groups=groups)
        self._decaying = [group["weight_decay"] != 0 for group in groups]

    def at(self, step: int) -> set[tuple]:
        """What a step does to the parameters: are they the predictor's, are they weights; rate, decay, adaptation."""
        self.step = step
        self._set_schedules()
        predictor = self.method.networks["predictor"] if "predictor" in self.method.networks else nn.Sequential()
        inside = {id(parameter) for parameter in predictor.parameters()}
        return {
            (id(one) in inside, one.ndim > 1, group["lr"], group["weight_decay"], group["lars_weight"])
            for group in self.optimizer.param_groups
            for one in group["params"]
        }


def chosen(total: int, per_epoch: int, warmup: int) -> list[int]:
    """The first steps and the last, both sides of each corner, and fifty between."""
    corners = [0, 1, per_epoch - 1, per_epoch, warmup - 1, warmup, warmup + 1, total // 2, total - per_epoch, total - 1]
    return sorted({step for step in [*corners, *np.linspace(0, total - 1, 50, dtype=int)] if step >= 0})


def by_epoch(step: int, per_epoch: int, peak: float, epochs: int) -> float:
    """adjust_learning_rate of main_simsiam.py."""
    return peak * 0.5 * (1 + np.cos(np.pi * (step // per_epoch) / epochs))


def facebook(step: int, per_epoch: int, peak: float, epochs: int) -> float:
    """adjust_learning_rate of main.py and of main_vicreg.py, both of whose cosines end at a thousandth of the peak."""
    if step < 10 * per_epoch:
        return peak * step / (10 * per_epoch)
    share = 0.5 * (1 + np.cos(np.pi * (step - 10 * per_epoch) / ((epochs - 10) * per_epoch)))
    return peak * share + 0.001 * peak * (1 - share)


def moco(step: int, per_epoch: int, peak: float, epochs: int, warmup: int = 10) -> float:
    """adjust_learning_rate of main_moco.py, which is called with the epoch's fraction."""
    epoch = step / per_epoch
    if epoch < warmup:
        return peak * epoch / warmup
    return peak * 0.5 * (1 + np.cos(np.pi * (epoch - warmup) / (epochs - warmup)))


def vit(step: int, per_epoch: int, peak: float, epochs: int) -> float:
    return moco(step, per_epoch, peak, epochs, warmup=40)


def solo(step: int, per_epoch: int, peak: float, epochs: int) -> float:
    """LinearWarmupCosineAnnealingLR from 3e-5, its peak at the end of the tenth epoch."""
    if step < 10 * per_epoch:
        return 3e-5 + (peak - 3e-5) * step / (10 * per_epoch)
    return peak * 0.5 * (1 + np.cos(np.pi * (step - 10 * per_epoch) / ((epochs - 10) * per_epoch)))


# steps an epoch of whole batches, the official rate, its peak; weight decay; biases' and norms' share of the rate
EVERYTHING, WEIGHTS = True, False
RATES = {
    "simsiam_imagenet": (2502, by_epoch, 0.1, 100, 1e-4, EVERYTHING, 1),
    "simsiam_cifar10": (97, by_epoch, 0.06, 800, 5e-4, EVERYTHING, 1),
    "simsiam_cifar10_solo": (195, solo, 0.5, 1000, 1e-5, EVERYTHING, 1),
    "barlow_twins_imagenet": (625, facebook, 1.6, 1000, 1e-6, WEIGHTS, 0.0048 / 0.2),
    "barlow_twins_cifar10_solo": (195, solo, 0.3, 1000, 1e-4, WEIGHTS, 1),
    "vicreg_imagenet": (625, facebook, 1.6, 1000, 1e-6, WEIGHTS, 1),
    "vicreg_cifar10_solo": (195, solo, 0.3, 1000, 1e-4, WEIGHTS, 1),
    "moco_v3_imagenet": (312, moco, 9.6, 100, 1e-6, WEIGHTS, 1),
    "moco_v3_vit_small_imagenet": (312, vit, 2.4e-3, 300, 0.1, EVERYTHING, 1),
    "moco_v3_cifar10_solo": (195, solo, 0.3, 1000, 1e-6, WEIGHTS, 1),
}


@pytest.mark.parametrize("name", RATES)
def test_every_parameters_rate_and_decay_over_the_full_run_are_the_sources(name):
    """SimSiam's predictor keeps the peak's rate; Barlow Twins' biases and norms have 0.024 of the weights'."""
    per_epoch, rate, peak, epochs, decay, everything, share = RATES[name]
    run, warmup = FullRun(name, per_epoch), 40 if rate is vit else 10
    adapting = float(run.run.recipe["optimizer"]["name"] == "lars")
    for step in chosen(run.total_steps, per_epoch, warmup * per_epoch):
        wanted, seen = rate(step, per_epoch, peak, epochs), set()
        for of_predictor, of_weights, found, decays, adapts in run.at(step):
            constant = of_predictor and name.startswith("simsiam")
            its = peak if constant else wanted if of_weights else share * wanted
            assert found == pytest.approx(its, rel=1e-9, abs=1e-15), (step, of_predictor, of_weights)
            felt = everything or of_weights
            assert (decays, adapts) == (decay * felt, adapting * of_weights), (step, of_weights)
            seen.add((of_predictor, of_weights))
        assert len(seen) == (4 if "predictor" in run.method.networks else 2)


@pytest.mark.parametrize("name", [name for name in RATES if name.startswith("moco_v3")])
def test_the_momentum_rises_from_99_hundredths_to_one_along_a_cosine(name):
    """adjust_moco_momentum with --moco-m-cos, and solo-learn's MomentumUpdater: every step."""
    per_epoch = RATES[name][0]
    run = FullRun(name, per_epoch)
    for step in chosen(run.total_steps, per_epoch, 10 * per_epoch):
        wanted = 1 - 0.5 * (1 + np.cos(np.pi * step / run.total_steps)) * (1 - 0.99)
        assert run.method.schedules(step) == {"momentum": pytest.approx(wanted, rel=1e-12)}
    assert run.method.schedules(0)["momentum"] == 0.99


def test_golden_rates_at_the_ends_of_the_full_runs():
    """Written out: the peak, and the last step's rate, a cosine's x^2 / 4 above its floor."""
    ends = {
        "simsiam_imagenet": (0.1, 0.1 * (np.pi / 100) ** 2 / 4, 0),  # by epoch: the last epoch's
        "barlow_twins_imagenet": (1.6, 0.0016, 10),
        "vicreg_imagenet": (1.6, 0.0016, 10),
        "moco_v3_imagenet": (9.6, 9.6 * (np.pi / 28_080) ** 2 / 4, 10),
        "moco_v3_vit_small_imagenet": (0.0024, 0.0024 * (np.pi / 81_120) ** 2 / 4, 40),
        "simsiam_cifar10_solo": (0.5, 0.5 * (np.pi / 193_050) ** 2 / 4, 10),
    }
    for name, (peak, last, warmup) in ends.items():
        run = FullRun(name, RATES[name][0])
        assert run.learning_rate(warmup * run.steps_per_epoch) == pytest.approx(peak, rel=1e-12), name
        assert run.learning_rate(run.total_steps - 1) == pytest.approx(last, rel=1e-3), name

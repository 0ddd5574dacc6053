"""The parameters of an augmentation as EquiMod's published code counts and normalises them. Imports no torch.

ADevillers/EquiMod, main.py of the branches SimCLR+EquiMod (at 908c7b4) and BYOL+EquiMod (at 5c936cf). The order is that
of `selfsup.methods.equimod_parameters.parameter_vector`.
"""

from collections.abc import Sequence

from selfsup.augment.settings import View

Constants = tuple[list[float], list[float]]  # means and deviations

# fmt: off
CIFAR10: Constants = (
    [4.3122, 4.3216, 23.369, 23.374, 0.49998, 0.80087, 1.2025, 1.4007, 1.5964, 1.8004,
     0.99993, 1.0002, 0.99986, 2.2321e-07, 0.19965],
    [3.9740, 3.9851, 4.9544, 4.9539, 0.5000, 0.3993, 1.1651, 1.0210, 1.0200, 1.1669,
     0.2066, 0.2068, 0.2066, 0.0517, 0.3997],
)
IMAGENET: Constants = (
    [68.162, 99.199, 269.33, 274.57, 0.49905, 0.80054, 1.1998, 1.3994, 1.6014, 1.7995,
     1.0001, 1.0000, 1.0005, 1.5640e-04, 0.20018],
    [77.370, 98.681, 136.86, 143.49, 0.5000, 0.39959, 1.1661, 1.0201, 1.0201, 1.1657,
     0.41347, 0.41323, 0.41349, 0.10333, 0.40013],
)
# fmt: on
BLUR: Constants = ([0.50030, 0.52507], [0.5, 0.65251])
# The BYOL branch's, for both datasets. They do not normalise: blur and solarisation apply to .55 and .10 of its views
# with deviations of .50 and .30; and its jitter figures are SimCLR's, for another strength of the saturation.
BYOL_BLUR_AND_SOLARIZE: Constants = ([0.27256, 0.52507, 0.050149], [0.30381, 0.65251, 0.064719])


def _joined(one: Constants, other: Constants) -> Constants:
    return one[0] + other[0], one[1] + other[1]


# By the pixels of a view's side and the number of parameters.
AUTHORS: dict[tuple[int, int], Constants] = {
    (32, 15): CIFAR10,
    (224, 17): _joined(IMAGENET, BLUR),
    (32, 18): _joined(CIFAR10, BYOL_BLUR_AND_SOLARIZE),
    (224, 18): _joined(IMAGENET, BYOL_BLUR_AND_SOLARIZE),
}


def parameter_count(policies: Sequence[View]) -> int:
    """Return the length of the parameter vector: 15, 2 more if some view is blurred, 1 more if some is solarised."""
    return 15 + 2 * any(view.blur for view in policies) + any(view.solarize for view in policies)

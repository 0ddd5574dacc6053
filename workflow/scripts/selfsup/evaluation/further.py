"""Linear classifiers with other learning rates or initial weights, trained on the same features as the headline's.

Nearly all of an epoch's cost is the encoder's forward pass, so that ten learning rates cost little more than one. These
classifiers share no tensor and no collective with the headline's, whose bits are the same with and without them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from selfsup.augment.transfer import sent
from selfsup.engine.distributed import Ranks
from selfsup.measures import accuracy

NOT_A_NUMBER = {"top1": float("nan"), "top5": float("nan")}


class FurtherClassifiers:
    """K linear classifiers in one wide layer, so that a step has as many operations for ten as for one.

    Each follows the headline's protocol with its own peak learning rate. Parameters: float32 [K, classes, features] and
    [K, classes].
    """

    def __init__(self, initial: Sequence[nn.Linear], linear: Mapping, device: torch.device):
        """initial: the K classifiers at step 0. linear: the recipe's block, `further` of length K."""
        self._linear = linear
        stacks = ([one.weight.detach() for one in initial], [one.bias.detach() for one in initial])
        self._weight, self._bias = (nn.Parameter(torch.stack(parts).to(device)) for parts in stacks)
        self._parameters = [self._weight, self._bias]
        self._momenta = [torch.zeros_like(parameter) for parameter in self._parameters]

    def train_step(
        self, features: torch.Tensor, labels: torch.Tensor, *, images: int, rates: Sequence[float], ranks: Ranks
    ) -> None:
        """Do one step of each, with learning rates of their own.

        features: float32 [n, D], this rank's part of a global batch of `images` images.
        """
        count, classes = self._bias.shape
        logits = F.linear(features, self._weight.flatten(0, 1), self._bias.flatten()).view(-1, classes)
        # Each classifier has its own term in the sum, so that its gradient is the same as if it were trained alone.
        share = F.cross_entropy(logits, labels.repeat_interleave(count), reduction="sum") / images
        (share * ranks.size).backward()
        ranks.average_gradients(self._parameters)
        self._descend(sent(torch.tensor(rates).numpy(), features.device))

    @torch.no_grad()
    def _descend(self, rates: torch.Tensor) -> None:
        """Do torch.optim.SGD's step with a learning rate for each classifier, float32 [K]."""
        linear = self._linear
        for parameter, momentum in zip(self._parameters, self._momenta, strict=True):
            gradient = parameter.grad.add_(parameter, alpha=linear["weight_decay"])
            momentum.mul_(linear["momentum"]).add_(gradient)
            change = gradient.add_(momentum, alpha=linear["momentum"]) if linear["nesterov"] else momentum
            parameter.addcmul_(change, rates.view(-1, *[1] * (parameter.dim() - 1)), value=-1)
            parameter.grad = None

    @torch.no_grad()
    def rows(self, features: torch.Tensor, labels: torch.Tensor, images: int, ranks: Ranks) -> list[dict[str, float]]:
        """Return a row for each: peak_lr, initial_weights, and top1 and top5 on the test set in %. Collective.

        features, labels: this rank's part of `images` test images. A diverged classifier has NaN, and does not end the
        job, because it is not the headline.
        """
        rows = []
        for one, weight, bias in zip(self._linear["further"], self._weight, self._bias, strict=True):
            logits = F.linear(features, weight, bias)
            diverged = ranks.any(not bool(torch.isfinite(logits).all()))
            top = NOT_A_NUMBER if diverged else accuracy(logits, labels, images, ranks)
            rows.append({"peak_lr": one["peak_lr"], "initial_weights": one["initial_weights"], **top})
        return rows

    def state_dict(self) -> dict[str, torch.Tensor]:
        names = ("weight", "bias", "weight_momentum", "bias_momentum")
        return dict(zip(names, [p.detach() for p in self._parameters] + self._momenta, strict=True))

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

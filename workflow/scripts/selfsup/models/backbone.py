"""torchvision's ResNets as backbones: no classifier, a choice of stem and width (paper, section 6.2)."""

from collections.abc import Mapping
from functools import partial
from importlib import metadata

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from selfsup.models.batch_norm import BatchNorm
from selfsup.models.initial_weights import seeded_weights
from selfsup.models.narrow_convolutions import take_pixels_first
from selfsup.models.resnet_settings import ResNetSettings, Stem
from selfsup.models.same_padding import pad_as_jax
from selfsup.models.timm_settings import TimmSettings
from selfsup.recipe import Recipe
from selfsup.settings.registries import BACKBONES

LAYERS = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


class Backbone(ResNet):
    """A ResNet from images [N, 3, H, W] to features [N, out_features]; parameters have torchvision's names.

    With width 64, the 7 x 7 stem and symmetric padding it is torchvision's network with `fc` made the identity.
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: tuple[int, ...],
        *,
        width: int,
        stem: Stem,
        zero_init_residual: bool,
        norm_layer,
    ):
        nn.Module.__init__(self)  # not ResNet's, whose width is fixed at 64
        self._norm_layer = norm_layer
        self.inplanes, self.dilation, self.groups, self.base_width = width, 1, 1, 64
        self.conv1 = nn.Conv2d(3, width, stem.kernel, stem.stride, stem.padding, bias=False)
        self.bn1 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem.max_pool else nn.Identity()
        for stage, blocks in enumerate(layers):
            setattr(
                self,
                f"layer{stage + 1}",
                self._make_layer(block, width * 2**stage, blocks, stride=1 if stage == 0 else 2),
            )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Identity()
        self.out_features = width * 2 ** (len(layers) - 1) * block.expansion
        self._initialise(zero_init_residual)
        if stem.initial_weights == "torch":
            self.conv1.reset_parameters()  # last, so that the other weights are those of a run with the other kind

    def _initialise(self, zero_init_residual: bool) -> None:
        """torchvision's initial weights; with `zero_init_residual` residual branches start as nothing (section 5.1)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            elif zero_init_residual and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)


def build_backbone(recipe: Mapping) -> nn.Module:
    """Return the recipe's backbone, its weights drawn from torch's CPU generator (see `seeded_weights`).

    From images [N, 3, H, W] to features [N, out_features].
    """
    recipe = Recipe.of(recipe)
    backbone = BACKBONES.component(recipe.model.backbone)(recipe)
    take_pixels_first(backbone)
    return backbone


def software(recipe: Mapping) -> dict[str, str]:
    """Return {package: version} of what the backbone is made by beside torch and torchvision."""
    return {"timm": metadata.version("timm")} if isinstance(Recipe.of(recipe).model, TimmSettings) else {}


def resnet(recipe: Recipe) -> Backbone:
    """Return a recipe's ResNet."""
    model: ResNetSettings = recipe.model
    block, layers = LAYERS[model.backbone]
    norm_layer = partial(BatchNorm, momentum=model.batch_norm.momentum, eps=model.batch_norm.eps)
    backbone = Backbone(
        block,
        layers,
        width=model.width,
        stem=model.stem,
        zero_init_residual=model.zero_init_residual,
        norm_layer=norm_layer,
    )
    if model.padding == "same":
        pad_as_jax(backbone)
    return backbone


def initial_backbone(recipe: Mapping, seed: int) -> nn.Module:
    """Return the backbone as training with this seed finds it at step 0."""
    with seeded_weights(seed):
        return build_backbone(recipe)

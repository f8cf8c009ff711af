"""The example's networks: ResNet-50, ResNet-50-vd and a tiny CNN for tests.

ResNet-50 follows He et al. (arXiv 1512.03385) with the stride in the 3x3 convolution; it has 25,557,032 parameters at
1000 classes. ResNet-50-vd follows "Bag of Tricks" (arXiv 1812.01187): a deep stem and an average-pool shortcut.

Every network maps images [N, 3, H, W] to logits [N, classes] and works from 8 x 8 pixels on. In training, batch norm
needs two samples per process once the feature map has shrunk to 1 x 1: the sampler sees to that, not this module.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

#: Blocks of the four stages of a 50-layer network, and how much wider a block's output is than its middle.
STAGES_50 = (3, 4, 6, 3)
EXPANSION = 4


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [*_conv_bn(inputs, outputs, kernel, stride), nn.ReLU(inplace=True)]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut: [N, inputs, H, W] -> [N, 4 * width, H / stride, W / stride].

    The last batch norm starts at zero, so that the block starts as its shortcut: small batches then train at once.
    """

    def __init__(self, inputs: int, width: int, stride: int, average_shortcut: bool) -> None:
        super().__init__()
        outputs = width * EXPANSION
        last_norm = nn.BatchNorm2d(outputs)
        nn.init.zeros_(last_norm.weight)
        self.body = nn.Sequential(
            *_conv_bn_relu(inputs, width, 1),
            *_conv_bn_relu(width, width, 3, stride),
            nn.Conv2d(width, outputs, 1, bias=False),
            last_norm,
        )
        self.shortcut = _shortcut(inputs, outputs, stride, average_shortcut)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


def _shortcut(inputs: int, outputs: int, stride: int, average: bool) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if stride == 1 or not average:
        return nn.Sequential(*_conv_bn(inputs, outputs, 1, stride))
    # A strided 1x1 convolution would ignore three of four positions; vd averages them first.
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, *_conv_bn(inputs, outputs, 1))


def _stem(deep: bool, small_images: bool) -> nn.Sequential:
    """The layers before the first stage, to 64 channels; they divide the side by 4, for small images by 1."""
    stride = 1 if small_images else 2
    if deep:
        layers = [*_conv_bn_relu(3, 32, 3, stride), *_conv_bn_relu(32, 32, 3), *_conv_bn_relu(32, 64, 3)]
    else:
        layers = _conv_bn_relu(3, 64, 3 if small_images else 7, stride)
    if not small_images:
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    return nn.Sequential(*layers)


class ResNet(nn.Module):
    """A bottleneck ResNet: images [N, 3, H, W] -> logits [N, classes].

    blocks: how many blocks each of the four stages has. vd: deep stem and average-pool shortcut. small_images: a stem
    that keeps the resolution, for images so small (8 to 16 pixels) that ImageNet's stem would leave nothing of them.
    """

    def __init__(self, blocks: Sequence[int], classes: int, *, vd: bool = False, small_images: bool = False) -> None:
        super().__init__()
        self.stem = _stem(vd, small_images)
        stages: list[nn.Module] = []
        inputs = 64
        for index, count in enumerate(blocks):
            width = 64 * 2**index
            for block in range(count):
                stride = 2 if block == 0 and index > 0 else 1
                stages.append(Bottleneck(inputs, width, stride, average_shortcut=vd))
                inputs = width * EXPANSION
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)
        _initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        features = self.stages(self.stem(x))  # [N, 2048, H / 32, W / 32]
        logits: Tensor = self.classifier(self.pool(features).flatten(1))  # [N, 2048] -> [N, classes]
        return logits


class TinyCnn(nn.Module):
    """Three strided convolutions, 6,000 parameters and a head: images [N, 3, H, W] -> logits [N, classes].

    For tests and for a first look at elasticity: an epoch of the digits takes a second or two on one core.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv_bn_relu(3, 16, 3, 2), *_conv_bn_relu(16, 24, 3, 2), *_conv_bn_relu(24, 32, 3, 2)
        )
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Linear(32 * 4, classes)
        _initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        features = self.pool(self.features(x))  # [N, 32, 2, 2]
        logits: Tensor = self.classifier(features.flatten(1))  # [N, 128] -> [N, classes]
        return logits


def _initialise_convolutions(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _resnet50(classes: int, small_images: bool) -> nn.Module:
    return ResNet(STAGES_50, classes, small_images=small_images)


def _resnet50_vd(classes: int, small_images: bool) -> nn.Module:
    return ResNet(STAGES_50, classes, vd=True, small_images=small_images)


def _tiny(classes: int, small_images: bool) -> nn.Module:
    del small_images  # its stem is made for small images anyway
    return TinyCnn(classes)


MODELS: dict[str, Callable[[int, bool], nn.Module]] = {
    "resnet50": _resnet50,
    "resnet50_vd": _resnet50_vd,
    "tiny": _tiny,
}


def build_model(name: str, classes: int, *, small_images: bool = False) -> nn.Module:
    """The network called `name` in MODELS with `classes` outputs, freshly initialised from torch's seed.

    Raises ValueError when the name is unknown or there are fewer than two classes.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, not {classes}")
    return MODELS[name](classes, small_images)

"""The two networks of the example, for normalised images [N, 1, 8, 8]; both give logits [N, 10].

`edl teacher serve --model nets:teacher` makes the teacher from here.
"""

from torch import nn

from digits import CLASSES


def teacher() -> nn.Module:
    """A CNN of 0.3 million parameters: more than the digits need."""
    return nn.Sequential(
        *_block(1, 32),
        *_block(32, 64),
        nn.MaxPool2d(2),
        *_block(64, 128),
        *_block(128, 128),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(128 * 4, CLASSES),
    )


def student(width: int = 16) -> nn.Module:
    """One hidden layer: 1,210 parameters at a width of 16."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, CLASSES))


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

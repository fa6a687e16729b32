"""Pre-activation Wide Residual Networks, as the SuperWeights papers train them.

Source: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, arXiv 1605.07146.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from superweight_ensembles.errors import SuperWeightError, names_options
from superweight_ensembles.models.architecture import Architecture, is_positive, remember_architecture


class PreActivationBlock(nn.Module):
    """norm, relu, conv, norm, relu, conv, plus a shortcut: 1x1 on the activated input where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        residual = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """Three stages of pre-activation blocks over a 3x3 stem; any image of at least 4 x 4 pixels."""

    def __init__(self, depth: int, width: float, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = (16, *(max(1, round(stage * width)) for stage in (16, 32, 64)))
        self.num_classes = num_classes
        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        for stage, (read, made) in enumerate(pairwise(channels)):
            first = PreActivationBlock(read, made, stride=2 if stage else 1)
            others = (PreActivationBlock(made, made, stride=1) for _ in range(1, (depth - 4) // 6))
            self.stages.append(nn.Sequential(first, *others))
        self.norm = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, K)."""
        features = F.relu(self.norm(self.stages(self.stem(images))))
        return self.fc(features.mean((2, 3)))


@names_options
def wide_resnet(depth: int, width: float, num_classes: int, in_channels: int = 3) -> WideResNet:
    """WRN-depth-width: channels 16, 16w, 32w, 64w; (depth - 4) / 6 blocks a stage.

    Args:
        depth: Number of layers, 6n + 4.
        width: Factor w of the channels, which are rounded to 1 at least: a fraction such as 0.25 gives 16, 4, 8, 16.
        num_classes: K.
        in_channels: Channels of the images.

    Raises:
        SuperWeightError: A depth that is not 6n + 4, a width that is no positive number, or a size below one.

    Source: Zagoruyko and Komodakis 2016, table 1.
    Differs from paper: the width may be a fraction, so that there is a network of any size.

    Example:
        >>> sum(parameter.numel() for parameter in wide_resnet(28, 7, num_classes=100).parameters())
        17925940
    """
    if not isinstance(depth, int) or depth < 10 or (depth - 4) % 6:
        raise SuperWeightError(f"the depth of a WideResNet is 6n + 4 (10, 16, 22, 28, ...); got {depth!r}")
    if not is_positive(width):
        raise SuperWeightError(f"the width of a WideResNet is a positive number, such as 2 or 0.25; got {width!r:.40}")
    if min(num_classes, in_channels) < 1:
        raise SuperWeightError(f"num_classes and in_channels must be at least 1; got {num_classes}, {in_channels}")
    options = {"depth": depth, "width": width}
    return remember_architecture(
        WideResNet(depth, width, num_classes, in_channels),
        Architecture(model="wide_resnet", num_classes=num_classes, in_channels=in_channels, options=options),
    )

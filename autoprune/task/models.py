"""Small image classifiers to compress: plain modules, for images from 8x8 up.

Every constructor takes `in_channels`, `image_size` (pixels, square) and `num_classes`; inputs are
`[N, in_channels, image_size, image_size]`, outputs are class logits `[N, num_classes]`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def _conv_bn(c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(c_out)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 projection where the shape changes."""

    def __init__(self, c_in: int, c_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(c_in, c_out, stride=stride)
        self.conv2, self.bn2 = _conv_bn(c_out, c_out)
        self.relu = nn.ReLU()
        changes = stride != 1 or c_in != c_out
        self.shortcut = nn.Sequential(*_conv_bn(c_in, c_out, kernel=1, stride=stride)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, c_in, H, W]` to `[N, c_out, H/stride, W/stride]`."""
        inner = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual net for small images: a 3x3 stem, then stages of `BasicBlock` that halve the map from the second on."""

    def __init__(
        self, in_channels: int, image_size: int, num_classes: int, *, widths: Sequence[int], blocks_per_stage: int
    ) -> None:
        super().__init__()
        del image_size  # global pooling accepts any
        self.stem = nn.Sequential(*_conv_bn(in_channels, widths[0]), nn.ReLU())
        self.blocks = nn.Sequential()
        c_in = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks_per_stage):
                self.blocks.append(BasicBlock(c_in, width, stride=2 if stage and not block else 1))
                c_in = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter by a 3x3 depthwise, project by a linear 1x1; identity shortcut where the shape stays."""

    def __init__(self, c_in: int, c_out: int, *, stride: int, expand: int) -> None:
        super().__init__()
        inner = c_in * expand
        self.expand = nn.Sequential(*_conv_bn(c_in, inner, kernel=1), nn.ReLU())
        self.depthwise = nn.Sequential(*_conv_bn(inner, inner, stride=stride, groups=inner), nn.ReLU())
        self.project = nn.Sequential(*_conv_bn(inner, c_out, kernel=1))
        self.has_shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, c_in, H, W]` to `[N, c_out, H/stride, W/stride]`."""
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.has_shortcut else out


class MobileNetTiny(nn.Module):
    """Inverted residuals in three resolutions, about 0.1 M parameters."""

    def __init__(self, in_channels: int, image_size: int, num_classes: int) -> None:
        super().__init__()
        del image_size  # global pooling accepts any
        self.stem = nn.Sequential(*_conv_bn(in_channels, 16), nn.ReLU())
        shapes = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1)]
        self.blocks = nn.Sequential(*(InvertedResidual(a, b, stride=s, expand=4) for a, b, s in shapes))
        self.head = nn.Sequential(*_conv_bn(40, 128, kernel=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        return self.fc(self.pool(self.head(self.blocks(self.stem(x)))).flatten(1))


class VGGTiny(nn.Module):
    """Plain convolutions and max pooling; the map is flattened, not averaged, before a two-layer classifier."""

    def __init__(self, in_channels: int, image_size: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out, pools in [(in_channels, 32, False), (32, 32, True), (32, 64, False), (64, 64, True)]:
            layers += [*_conv_bn(c_in, c_out), nn.ReLU()] + ([nn.MaxPool2d(2)] if pools else [])
        self.features = nn.Sequential(*layers)
        flat = 64 * (image_size // 4) ** 2
        self.classifier = nn.Sequential(nn.Linear(flat, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        return self.classifier(self.features(x).flatten(1))


class MLP(nn.Module):
    """Two hidden layers over the flattened image."""

    def __init__(
        self, in_channels: int, image_size: int, num_classes: int, *, hidden: tuple[int, int] = (256, 128)
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * image_size**2, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], num_classes)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x.flatten(1))))))


class RowLSTM(nn.Module):
    """Reads an image row by row with a stack of LSTM layers; a linear layer classifies the last output."""

    def __init__(
        self, in_channels: int, image_size: int, num_classes: int, *, hidden: int = 96, layers: int = 2
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(in_channels * image_size, hidden, layers, batch_first=True)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        outputs, _ = self.lstm(x.transpose(1, 2).flatten(2))
        return self.fc(outputs[:, -1])


def resnet8(in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Three residual blocks, widths 16 / 32 / 64."""
    return ResNet(in_channels, image_size, num_classes, widths=(16, 32, 64), blocks_per_stage=1)


def resnet8_wide(in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Three residual blocks, widths 32 / 64 / 128."""
    return ResNet(in_channels, image_size, num_classes, widths=(32, 64, 128), blocks_per_stage=1)


def resnet20(in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Nine residual blocks, widths 16 / 32 / 64, with projection shortcuts."""
    return ResNet(in_channels, image_size, num_classes, widths=(16, 32, 64), blocks_per_stage=3)

"""ResNet v1.5 in plain `torch.nn`, with the names of the released checkpoints: what conversions are held against."""

import torch
from torch import nn

BLOCKS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True), 101: ((3, 4, 23, 3), True)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the stride on the first."""

    expansion = 1

    def __init__(self, inputs, width, stride, downsample):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, the stride on the 3x3: that is v1.5."""

    expansion = 4

    def __init__(self, inputs, width, stride, downsample):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = downsample

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        y = self.bn3(self.conv3(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class BottleneckExpand(nn.Module):
    """The wider representation: channel c gets channel c mod `inputs` of what came in, unless it is narrower."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, 512, 1), nn.BatchNorm2d(512)
        self.conv2, self.bn2 = _conv(512, 512, 3), nn.BatchNorm2d(512)
        self.conv3, self.bn3 = _conv(512, outputs, 1), nn.BatchNorm2d(outputs)
        self.source = [c % inputs for c in range(outputs)] if outputs >= inputs else None

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y if self.source is None else y + x[:, self.source]).relu()


class ResNet(nn.Module):
    """Normalised images (B, 3, H, W) to features (B, D), with numbers that are nobody's default.

    A wrong epsilon, a swapped pair of statistics or a shifted padding shows because nothing is 0 or 1.
    """

    def __init__(self, variant, feature_dim=None, *, width=64, kernel=7, pool=True, classes=None, seed=0):
        super().__init__()
        blocks, deep = BLOCKS[variant]
        block = Bottleneck if deep else BasicBlock
        self.conv1, self.bn1 = _conv(3, width, kernel, 2 if kernel == 7 else 1), nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()
        inputs = width
        for stage, depth in enumerate(blocks):
            layers, inner = [], width * 2**stage
            outputs = inner * block.expansion
            for i in range(depth):
                stride, downsample = (2 if stage and not i else 1), None
                if stride != 1 or inputs != outputs:
                    downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
                layers.append(block(inputs, inner, stride, downsample))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.resizer = BottleneckExpand(inputs, feature_dim) if feature_dim else nn.Identity()
        self.fc = nn.Linear(feature_dim or inputs, classes) if classes else None
        self._randomise(torch.Generator().manual_seed(seed))
        self.eval()

    def _randomise(self, generator):
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):  # He's, so that activations keep their size
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                # Small variances in the first normalisation, where an epsilon of 1e-3 for 1e-5 then shows.
                low, high = (0.02, 0.1) if name == "bn1" else (0.5, 1.5)
                last = name.endswith("bn3") or (name.endswith("bn2") and name.startswith("layer"))
                scale = 0.3 if last else 1.0  # the branches of 16 to 33 blocks add up
                nn.init.uniform_(module.weight, 0.5 * scale, 1.5 * scale, generator=generator)
                nn.init.normal_(module.bias, std=0.2, generator=generator)
                nn.init.normal_(module.running_mean, std=0.2, generator=generator)
                nn.init.uniform_(module.running_var, low, high, generator=generator)
                module.num_batches_tracked.fill_(1000)

    def forward(self, x):
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.resizer(x).mean((2, 3))

    def features(self, images):
        """uint8 NumPy images (B, H, W, 3) to NumPy features (B, D)."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        with torch.no_grad():
            return self((torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()


def make(*args, **kwargs):
    """A `ResNet` on the CPU, wherever Keras would have its tensors."""
    with torch.device("cpu"):
        return ResNet(*args, **kwargs)

"""A small residual network trained on scikit-learn's digits in a few seconds.

Run it alone to see its accuracy: ``python examples/digits.py``. The other examples import from it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn


class Digits(NamedTuple):
    """1,797 digits of 8 x 8 pixels in [0, 1], three quarters to train on."""

    train_x: Tensor  # [1347, 1, 8, 8]
    train_y: Tensor  # [1347]
    test_x: Tensor  # [450, 1, 8, 8]
    test_y: Tensor  # [450]


def load() -> Digits:
    """Read the digits that come with scikit-learn and split them, always the same way."""
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels / 16.0, labels, test_size=0.25, stratify=labels, random_state=0)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in split)
    return Digits(train_x.float().view(-1, 1, 8, 8), train_y.long(), test_x.float().view(-1, 1, 8, 8), test_y.long())


class ResidualBlock(nn.Module):
    """``relu(x + bn(conv(relu(bn(conv(x))))))``"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return torch.relu(out)


class DigitsNet(nn.Module):
    """Convolution, batch norm, residual addition, ReLU, max and average pooling: [N, 1, 8, 8] -> [N, 10]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block1 = ResidualBlock(width)
        self.pool1 = nn.MaxPool2d(2)
        self.widen = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.block2 = ResidualBlock(2 * width)
        self.pool2 = nn.AvgPool2d(2)
        self.head = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.block1(self.stem(x)))
        x = self.pool2(self.block2(self.widen(x)))
        return self.head(torch.flatten(x, 1))


def train(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int = 12, batch_size: int = 64, seed: int = 0) -> None:
    """Train on cross-entropy with Adam and a one-cycle schedule; leaves the model in evaluation mode."""
    shuffle = torch.Generator().manual_seed(seed)
    batches = -(-len(x) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=epochs * batches)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=shuffle).split(batch_size):
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of samples whose largest output is the label."""
    return float((model(x).argmax(dim=1) == y).float().mean())


def trained(epochs: int = 12, width: int = 16, seed: int = 0) -> tuple[DigitsNet, Digits]:
    """A trained network and its data; prints the test accuracy and how long training took."""
    digits = load()
    torch.manual_seed(seed)
    model = DigitsNet(width)
    start = time.perf_counter()
    train(model, digits.train_x, digits.train_y, epochs=epochs, seed=seed)
    seconds = time.perf_counter() - start
    score = accuracy(model, digits.test_x, digits.test_y)
    print(f"digits network: test accuracy {score:.2%}, trained in {seconds:.1f} s")
    return model, digits


if __name__ == "__main__":
    trained()

"""Digits, a small network, training and testing."""

from functools import cache

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.layers(x)


@cache
def load_digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.data / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]


def load_data(partition_id, num_partitions):
    x, y = load_digits()
    x, y = x[:1500][partition_id::num_partitions], y[:1500][partition_id::num_partitions]
    cut = max(1, len(x) // 5)
    train, test = TensorDataset(x[cut:], y[cut:]), TensorDataset(x[:cut], y[:cut])
    return DataLoader(train, batch_size=8, shuffle=True), DataLoader(test, batch_size=64)


def load_central():
    x, y = load_digits()
    return DataLoader(TensorDataset(x[1500:], y[1500:]), batch_size=300)


def train(net, loader, epochs, lr):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    total = 0.0
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(loader))


def test(net, loader):
    net.eval()
    loss = correct = 0.0
    with torch.no_grad():
        for x, y in loader:
            outputs = net(x)
            loss += nn.functional.cross_entropy(outputs, y, reduction="sum").item()
            correct += (outputs.argmax(1) == y).sum().item()
    return loss / len(loader.dataset), correct / len(loader.dataset)

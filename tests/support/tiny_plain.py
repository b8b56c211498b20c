"""Small classifiers in plain PyTorch, and the words that they know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from interp_plugin.text.models import PlainModel

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "it", "was", "good", "bad", "film"]
CLASSES = ("bad", "so-so", "good")


class Lstm(nn.Module):
    """Words are read one by one; the last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 8)
        self.lstm = nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, len(CLASSES))

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(ids))
        scores: Tensor = self.head(states[:, -1])
        return scores


class Cnn(nn.Module):
    """Maximum of each feature over windows of three words; masked places are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 8)
        self.convolution = nn.Conv1d(8, 10, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(10, len(CLASSES))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        keep = mask.unsqueeze(-1)
        vectors = (self.embedding(ids) * keep).transpose(1, 2)
        features = self.relu(self.convolution(vectors).transpose(1, 2)) * keep  # (B, T, 10)
        scores: Tensor = self.head(features.amax(1))
        return scores


def tokenizer(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def lstm(**settings: Any) -> PlainModel:
    torch.manual_seed(0)
    net = Lstm().eval()
    return PlainModel(net, tokenizer, net.embedding, classes=CLASSES, **settings)


def cnn(**settings: Any) -> PlainModel:
    torch.manual_seed(0)
    net = Cnn().eval()
    return PlainModel(
        net, tokenizer, net.embedding, {"features": net.relu}, CLASSES, **{"pads": True, **settings}
    )

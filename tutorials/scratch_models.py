"""Small classifiers for SST-2 that start from random numbers: a Transformer, an LSTM and a CNN.

``layer_curves.py`` trains them.  All read the word pieces of one tokenizer, so that their tokens are the same.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from train_default_model import LABELS, MAX_TOKENS, batches, optimiser, pad
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

from interp_plugin import PlainModel

WIDTH = 128
DROPOUT = 0.3
LEARNING_RATE = {"Transformer": 5e-4, "LSTM": 2e-3, "CNN": 2e-3}


class Lstm(nn.Module):
    """Two layers, read from left to right; the last token's state is classified."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.layers = nn.ModuleList(nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(2))
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(WIDTH, len(LABELS))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.dropout(self.embedding(ids))
        for layer in self.layers:
            states = self.dropout(layer(states)[0])  # (B, T, WIDTH); padding comes after all that is read
        last = mask.long().sum(1) - 1
        return self.head(states[torch.arange(len(ids)), last])


class Cnn(nn.Module):
    """Three layers of windows of three words, and the largest of each feature (after Kim, 2014)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.convolutions = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 3, padding=1) for _ in range(3))
        self.layers = nn.ModuleList(nn.ReLU() for _ in self.convolutions)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(WIDTH, len(LABELS))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        keep = mask.unsqueeze(-1).bool()
        states = self.dropout(self.embedding(ids)) * keep
        for convolution, layer in zip(self.convolutions, self.layers):
            states = layer(convolution(states.transpose(1, 2)).transpose(1, 2)) * keep  # (B, T, WIDTH)
        return self.head(self.dropout(states.amax(1)))


def new_model(name: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> nn.Module:
    """A Transformer, an LSTM or a CNN with random weights."""
    torch.manual_seed(seed)
    if name == "LSTM":
        return Lstm(len(tokenizer))
    if name == "CNN":
        return Cnn(len(tokenizer))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=DROPOUT,
    )
    return BertForSequenceClassification(config)


def readable(net: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...]:
    """What TextExplainer and CorpusStudy take: a model of transformers with its tokenizer, or a PlainModel."""
    if isinstance(net, BertForSequenceClassification):
        return net, tokenizer
    layers = {str(number): layer for number, layer in enumerate(net.layers, 1)}

    def words(text: str) -> object:
        return tokenizer(text, return_offsets_mapping=True)

    return (PlainModel(net, words, net.embedding, layers, list(LABELS.values()), pads=True),)


def scores_of(net: nn.Module, sequences: list[list[int]]) -> Tensor:
    """Logits, (B, 2)."""
    found = net(*pad(sequences).values())
    return getattr(found, "logits", found)


@torch.no_grad()
def dev_accuracy(net: nn.Module, sequences: list[list[int]], labels: Tensor) -> float:
    """Share of right answers."""
    net.eval()
    hits = 0
    for group in batches([len(s) for s in sequences], 64, None):
        hits += int((scores_of(net, [sequences[i] for i in group]).argmax(-1) == labels[group]).sum())
    return hits / len(sequences)


def trained(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    sequences: list[list[int]],
    labels: Tensor,
    file: Path,
    epochs: int,
    seed: int,
) -> nn.Module:
    """A model after some epochs of the training sentences, in eval mode; kept in a file for the next time."""
    net = new_model(name, tokenizer, seed)
    if file.exists():
        net.load_state_dict(torch.load(file, weights_only=True))
        return net.eval()
    rng = random.Random(seed)
    plan = [g for _ in range(epochs) for g in batches([len(s) for s in sequences], 32, rng)]
    adam, schedule = optimiser(net, LEARNING_RATE[name], len(plan))
    net.train()
    for group in tqdm(plan, desc=name):
        hidden = [hide(sequences[i], tokenizer.mask_token_id, rng) for i in group]
        loss = F.cross_entropy(scores_of(net, hidden), labels[group])
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        schedule.step()
    torch.save(net.state_dict(), file)
    return net.eval()


def hide(ids: list[int], mask: int, rng: random.Random, rate: float = 0.1) -> list[int]:
    """Without some of the words: few sentences are soon known by heart."""
    inner = [mask if rng.random() < rate else token for token in ids[1:-1]]
    return [ids[0], *inner, ids[-1]]

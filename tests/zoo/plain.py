"""Models of PyTorch's own modules: what public recipes write, and forms that no library has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.entry import VOCABULARY, Entry, features, pixels, tokens


class CNN(nn.Module):
    """3×3 and 1×1 convolutions, then an MLP: x [B, 3, 8, 8] -> [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 1, stride=2)
        self.norm = nn.BatchNorm2d(24)
        self.fc1, self.fc2 = nn.Linear(24, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.mix(torch.relu(self.conv(x)))))
        return self.fc2(torch.relu(self.fc1(h.mean((2, 3)))))


class LSTMClassifier(nn.Module):
    """Embedding, LSTM, a linear on the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(VOCABULARY, 16), nn.LSTM(16, 24, batch_first=True)
        self.hidden, self.score = nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.score(torch.relu(self.hidden(self.lstm(self.embed(input_ids))[0][:, -1])))


class Branching(nn.Module):
    """Python that decides on the values of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        h = self.two(torch.relu(self.one(x)))
        return h if h.sum() > 0 else -h


class Tied(nn.Module):
    """An output head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc(self.embed(input_ids))))


class Twice(nn.Module):
    """One block, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.block(x)
        return self.out(x + self.block(x))


class Functional(nn.Module):
    """Products with bare parameters: a fused qkv read in slices, mm, einsum, and experts [E, K, N] and [E, N, K]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(48, 16) * 0.2)
        self.proj = nn.Parameter(torch.randn(16, 16) * 0.2)
        self.mixed = nn.Parameter(torch.randn(16, 4, 6) * 0.2)
        self.up = nn.Parameter(torch.randn(3, 16, 20) * 0.2)
        self.down = nn.Parameter(torch.randn(3, 16, 20) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, w) for w in self.qkv.chunk(3))
        x = x + F.scaled_dot_product_attention(q, k, v) @ self.proj
        h = torch.einsum("btc,chd->bthd", x, self.mixed).flatten(2)
        rows = x.flatten(0, 1).expand(3, -1, -1)
        y = torch.bmm(torch.relu(torch.bmm(rows, self.up)), self.down.transpose(1, 2)).sum(0).view_as(x)
        return torch.cat([x + y, h], dim=-1)


_ENCODER = {"d_model": 32, "nhead": 2, "dim_feedforward": 48, "batch_first": True}

PLAIN = [
    Entry("nn.Transformer", lambda: nn.Transformer(num_encoder_layers=1, num_decoder_layers=1, **_ENCODER),
          lambda: {**features(6, 32, "src"), **features(5, 32, "tgt")}),
    Entry("nn.TransformerEncoder", lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**_ENCODER), 2),
          lambda: features(6, 32, "src")),
    Entry("CNN + MLP", CNN, lambda: {"x": pixels(8)["pixel_values"]}),
    Entry("LSTM classifier", LSTMClassifier, tokens),
    Entry("decides on values", Branching, lambda: features(4, 12)),
    Entry("tied weights", Tied, tokens),
    Entry("a block called twice", Twice, features),
    Entry("bare parameters", Functional, features),
]  # fmt: skip

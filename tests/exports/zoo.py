"""PyTorch modules as users write them: name -> module, shapes of its inputs, names of their dynamic dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Entry = tuple[Callable[[], nn.Module], list[tuple[int, ...]], dict[str, Any]]


class Made(nn.Module):
    """A module from layers and a function `(layers, *inputs)`."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *xs: Any) -> Any:
        return self.function(self, *xs)


def mlp(*between: Callable[[], nn.Module], n: int = 4, width: int = 8, m: int = 3) -> nn.Module:
    """Two hidden layers with these modules behind each."""
    layers: list[nn.Module] = []
    for size in (n, width):
        layers += [nn.Linear(size, width), *(make() for make in between)]
    return nn.Sequential(*layers, nn.Linear(width, m))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "leaky": nn.LeakyReLU, "prelu": nn.PReLU, "elu": nn.ELU, "selu": nn.SELU, "celu": nn.CELU,
    "gelu": nn.GELU, "gelu_tanh": lambda: nn.GELU("tanh"), "silu": nn.SiLU, "mish": nn.Mish, "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "softsign": nn.Softsign, "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid, "hardswish": nn.Hardswish, "relu6": nn.ReLU6, "hardshrink": nn.Hardshrink,
    "softshrink": nn.Softshrink, "tanhshrink": nn.Tanhshrink, "threshold": lambda: nn.Threshold(0.1, 0.0),
    "logsigmoid": nn.LogSigmoid, "rrelu": nn.RReLU, "glu": lambda: Made(lambda s, x: functional.glu(x.repeat(1, 2))),
}  # fmt: skip


def conv(*layers: nn.Module, inside: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inside, 2))


IMAGE: list[tuple[int, ...]] = [(1, 2, 6, 6)]
ZOO: dict[str, Entry] = {
    **{f"mlp_{name}": (lambda make=make: mlp(make), [(1, 4)], {}) for name, make in ACTIVATIONS.items()},  # type: ignore[misc]
    "batchnorm": (lambda: mlp(lambda: nn.BatchNorm1d(8), nn.ReLU), [(1, 4)], {}),
    "layernorm": (lambda: mlp(lambda: nn.LayerNorm(8), nn.ReLU), [(1, 4)], {}),
    "rmsnorm": (lambda: mlp(lambda: nn.RMSNorm(8, eps=1e-3), nn.ReLU), [(1, 4)], {}),
    "dropout": (lambda: mlp(nn.ReLU, lambda: nn.Dropout(0.5)), [(1, 4)], {}),
    "softmax": (lambda: nn.Sequential(mlp(nn.ReLU), nn.Softmax(-1)), [(1, 4)], {}),
    "logsoftmax": (lambda: nn.Sequential(mlp(nn.Tanh), nn.LogSoftmax(1)), [(1, 4)], {}),
    "residual": (
        lambda: Made(lambda s, x: s.b(functional.relu(s.a(x) + x)), a=nn.Linear(4, 4), b=nn.Linear(4, 2)),
        [(1, 4)], {},
    ),
    "dynamic": (lambda: mlp(nn.ReLU), [(1, 4)], {"x0": {0: "batch"}}),
    "double": (lambda: mlp(nn.ReLU).double(), [(1, 4)], {}),
    "several": (
        lambda: Made(lambda s, x, y: (s.a(x) + s.b(y), torch.relu(s.a(x))), a=nn.Linear(3, 2), b=nn.Linear(2, 2)),
        [(1, 3), (1, 2)], {},
    ),
    "concat": (
        lambda: Made(lambda s, x: s.b(torch.cat([x, torch.tanh(s.a(x))], dim=1)), a=nn.Linear(4, 3), b=nn.Linear(7, 2)),
        [(1, 4)], {},
    ),
    "chunk": (
        lambda: Made(lambda s, x: s.b(s.gate(s.a(x))), a=nn.Linear(4, 8), b=nn.Linear(4, 2), gate=nn.GLU()),
        [(1, 4)], {},
    ),
    "conv": (lambda: conv(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), inside=27), IMAGE, {}),
    "stride": (lambda: conv(nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), inside=12), IMAGE, {}),
    "dilation": (lambda: conv(nn.Conv2d(2, 3, 3, dilation=2), nn.ReLU(), inside=12), IMAGE, {}),
    "groups": (lambda: conv(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.AvgPool2d(2), inside=16), IMAGE, {}),
    **{
        f"pad_{mode}": (
            lambda mode=mode: conv(nn.Conv2d(2, 2, 3, padding=1, padding_mode=mode), nn.ReLU(), inside=72), IMAGE, {},
        )  # type: ignore[misc]
        for mode in ("reflect", "replicate", "circular")
    },
    "same": (lambda: conv(nn.Conv2d(2, 2, 4, padding="same"), nn.ReLU(), inside=72), IMAGE, {}),
    "conv1d": (lambda: conv(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.MaxPool1d(2), inside=9), [(1, 2, 8)], {}),
    "conv3d": (lambda: conv(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.AvgPool3d(2), inside=2), [(1, 1, 3, 3, 3)], {}),
    "batchnorm2d": (lambda: conv(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), inside=48), IMAGE, {}),
    "instancenorm": (lambda: conv(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3), nn.ReLU(), inside=48), IMAGE, {}),
    "groupnorm": (lambda: conv(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), inside=64), IMAGE, {}),
    "adaptive": (lambda: conv(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), inside=12), IMAGE, {}),
    "globalpool": (lambda: conv(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), inside=3), IMAGE, {}),
    "ceilpool": (lambda: conv(nn.ReLU(), nn.MaxPool2d(2, stride=4, ceil_mode=True), inside=8), IMAGE, {}),
    "transposed": (lambda: conv(nn.ConvTranspose2d(2, 2, 3, stride=2), nn.ReLU(), inside=98), [(1, 2, 3, 3)], {}),
    "nearest": (
        lambda: conv(nn.Upsample(scale_factor=2), nn.Conv2d(2, 1, 3), nn.ReLU(), inside=16), [(1, 2, 3, 3)], {},
    ),
    "bilinear": (
        lambda: conv(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 1, 3), nn.ReLU(), inside=16),
        [(1, 2, 3, 3)], {},
    ),
    "aligned": (
        lambda: conv(nn.Upsample(size=(7, 5), mode="bilinear", align_corners=True), nn.ReLU(), inside=70),
        [(1, 2, 3, 3)], {},
    ),
    "shuffle": (lambda: conv(nn.Conv2d(2, 4, 3), nn.PixelShuffle(2), nn.ReLU(), inside=64), IMAGE, {}),
    "unshuffle": (lambda: conv(nn.PixelUnshuffle(2), nn.Conv2d(8, 2, 2), nn.ReLU(), inside=8), IMAGE, {}),
    "zeropad": (lambda: conv(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(2, 1, 3), nn.ReLU(), inside=35), IMAGE, {}),
    "view": (
        lambda: Made(
            lambda s, x: s.b(torch.relu(s.a(x)).view(x.shape[0], -1)), a=nn.Conv2d(2, 1, 3), b=nn.Linear(16, 2)
        ),
        IMAGE, {},
    ),
    "permute": (
        lambda: Made(lambda s, x: s.b(torch.relu(x.permute(0, 2, 3, 1) @ s.a.weight).flatten(1)),
                     a=nn.Linear(3, 2), b=nn.Linear(108, 2)),
        IMAGE, {},
    ),
    "einsum": (
        lambda: Made(lambda s, x: s.b(torch.relu(torch.einsum("bchw,cd->bdhw", x, s.a.weight)).flatten(1)),
                     a=nn.Linear(3, 2), b=nn.Linear(108, 2)),
        IMAGE, {},
    ),
    "mixer": (
        lambda: Made(
            lambda s, x: s.c((functional.gelu(s.a(x.transpose(1, 2))).transpose(1, 2) + x).mean(dim=1)),
            a=nn.Linear(3, 3), c=nn.Linear(4, 2),
        ),
        [(1, 3, 4)], {},
    ),
    "slices": (lambda: Made(lambda s, x: s.a(torch.relu(x[:, 1:3] - x[:, ::2])), a=nn.Linear(2, 2)), [(1, 4)], {}),
    "minmax": (
        lambda: Made(lambda s, x: torch.minimum(s.a(x), torch.clamp(s.b(x), -0.5, 0.7)) * s.a(x).abs(),
                     a=nn.Linear(4, 2), b=nn.Linear(4, 2)),
        [(1, 4)], {},
    ),
    "reductions": (
        lambda: Made(lambda s, x: torch.stack([s.a(x).amax(1), s.a(x).sum(1), s.a(x).mean(1), s.a(x).norm(dim=1)], 1),
                     a=nn.Linear(4, 5)),
        [(1, 4)], {},
    ),
    "where": (lambda: Made(lambda s, x: torch.where(s.a(x) > 0.1, s.a(x), 0.5 * s.b(x)),
                           a=nn.Linear(4, 2), b=nn.Linear(4, 2)), [(1, 4)], {}),
    "squeeze": (lambda: Made(lambda s, x: s.a(torch.relu(s.c(x.unsqueeze(1))).squeeze(1)),
                             a=nn.Linear(6, 2), c=nn.Conv1d(1, 1, 3)), [(1, 8)], {}),
    "bilinear_layer": (
        lambda: Made(lambda s, x, y: s.a(torch.tanh(x), y), a=nn.Bilinear(2, 3, 2)), [(1, 2), (1, 3)], {},
    ),
    "lstm": (lambda: Made(lambda s, x: s.b(s.a(x)[0][:, -1]), a=nn.LSTM(2, 3, batch_first=True), b=nn.Linear(3, 1)),
             [(1, 3, 2)], {}),
    "gru": (lambda: Made(lambda s, x: s.b(s.a(x)[1][0]), a=nn.GRU(2, 3, bidirectional=True), b=nn.Linear(3, 1)),
            [(3, 1, 2)], {}),
    "attention": (
        lambda: Made(lambda s, x: s.b(s.a(x, x, x, need_weights=False)[0].flatten(1)),
                     a=nn.MultiheadAttention(4, 2, batch_first=True), b=nn.Linear(8, 1)),
        [(1, 2, 4)], {},
    ),
    "encoder": (
        lambda: Made(lambda s, x: s.b(s.a(x).flatten(1)),
                     a=nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), b=nn.Linear(8, 1)),
        [(1, 2, 4)], {},
    ),
    "normalise": (lambda: Made(lambda s, x: functional.normalize(s.a(x), dim=1), a=nn.Linear(4, 3)), [(1, 4)], {}),
    "standardise": (lambda: Made(lambda s, x: s.a((x - 0.3) / torch.tensor([0.5, 0.2, 0.7, 1.0])), a=mlp(nn.ReLU)),
                    [(1, 4)], {}),
    "half_weights": (lambda: Made(lambda s, x: functional.linear(x, s.a.weight.half().float()), a=nn.Linear(4, 3)),
                     [(1, 4)], {}),
}  # fmt: skip

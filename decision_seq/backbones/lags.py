"""Linear maps along time whose weights are stored by lag: what the mixers are made of.

A map takes I numbers a position to O numbers a position, every channel alike, and looks back over
P positions. Position t has weights of its own while t < P ("absolute") or the same ones as every
other ("toeplitz"). Beyond the window, position t >= P uses the weights of P - 1 on its last P
positions, so a sequence may have any length and a stream needs the last P - 1 inputs only.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from decision_seq.backbones.contract import LayerState, Mixer

Positions = Literal["absolute", "toeplitz"]


class LagLinear(nn.Module):
    """y[t, o] = bias[r, o] + sum over lag < P, i of weight[r, lag, o, i] x[t - lag, i].

    r = min(t, P - 1), or 0 where positions are toeplitz. x is zero before its start, so
    weight[r, lag] with lag > r is never used; it stays at zero.
    """

    def __init__(
        self,
        window: int,
        inputs: int,
        outputs: int,
        positions: Positions = "absolute",
        bias: bool = False,
        gain: float = 1.0,
    ) -> None:
        """Weights N(0, gain^2 / n), n the number of inputs that the position sees."""
        super().__init__()
        self.window = window  # P
        rows = window if positions == "absolute" else 1
        row, lag = torch.arange(rows).view(-1, 1, 1, 1), torch.arange(window).view(-1, 1, 1)
        seen = torch.full_like(row, window) if rows == 1 else row + 1
        scale = gain * (inputs * seen) ** -0.5 * (lag < seen)  # [rows, P, 1, 1]
        self.weight = nn.Parameter(scale * torch.randn(rows, window, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(rows, outputs)) if bias else None
        t = torch.arange(window)
        behind = t[:, None] - t  # lag of column s in row t, negative for the future
        index = t[:rows, None] * window + behind.clamp(min=0)  # of (row, lag) in `weight`
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("future", behind < 0, persistent=False)
        self.index: Tensor
        self.future: Tensor

    def rows(self, position: Tensor) -> Tensor:
        """Which row of `weight` each position uses."""
        return position.clamp(max=len(self.weight) - 1)

    def matrix(self, length: int) -> Tensor:
        """[L O, L I], the map of a whole sequence, L <= P: zero from later positions."""
        rows, window, outputs, inputs = self.weight.shape
        index = self.index[:length, :length].reshape(-1)
        blocks = self.weight.view(rows * window, outputs * inputs).index_select(0, index)
        blocks = blocks.view(length, length, outputs, inputs)
        blocks = blocks.masked_fill(self.future[:length, :length, None, None], 0)
        return blocks.transpose(1, 2).reshape(length * outputs, length * inputs)

    def biases(self, length: int) -> Tensor:
        """[L O, 1]"""
        assert self.bias is not None
        rows = self.rows(torch.arange(length, device=self.bias.device))
        return self.bias[rows].view(-1, 1)

    def step(self, x: Tensor, position: Tensor) -> Tensor:
        """The last n positions of `x`, given the P - 1 before them, without the bias.

        Args:
            x: [B, P - 1 + n, I, D].
            position: [B, n] of the last n.

        Returns:
            [B, n, O, D].
        """
        weight = self.weight.flip(1)[self.rows(position)]  # [B, n, P, O, I], oldest first
        weight = weight.transpose(2, 3).flatten(3)  # [B, n, O, P I]
        windows = [x[:, j : j + self.window].flatten(1, 2) for j in range(position.shape[1])]
        outputs = [torch.bmm(weight[:, j], seen) for j, seen in enumerate(windows)]  # no copies
        return torch.stack(outputs, dim=1)

    def bias_at(self, position: Tensor) -> Tensor:
        """[B, n] -> [B, n, O, 1]"""
        assert self.bias is not None
        return self.bias[self.rows(position)].unsqueeze(-1)


class TimeMixer(Mixer):
    """A mixer that treats every channel alike: a function of a [time] vector, applied D times.

    Up to P tokens are one dense product for all rows and channels of a batch; longer sequences and
    streams go through `_advance`, P tokens at a time.
    """

    window: int  # P

    @abstractmethod
    def _dense(self, x: Tensor) -> Tensor:
        """[L, N] -> [L, N] for L <= P; N = B D columns that do not see each other."""

    @abstractmethod
    def _advance(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """`step` for at most P tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        batch, length, width = x.shape
        if length > self.window:
            return self.step(x, self.init_state(batch, x.device, x.dtype))[0]
        columns = x.transpose(0, 1).reshape(length, batch * width)
        return self._dense(columns).view(length, batch, width).transpose(0, 1)

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, n, D], state. A token costs O(P) a hidden unit and channel."""
        outputs = []
        for chunk in x.split(self.window, dim=1):
            y, state = self._advance(chunk, state)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    def token_map(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, 1, L, L]: root mean square over the channels of d out[t] / d x[s].

        Channels do not mix here, so each has an L x L Jacobian of its own.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            y = self(x)
            rows = [
                torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)[0]  # [B, L, D]
                for t in range(x.shape[1])
            ]
        return torch.stack(rows, dim=1).square().mean(-1).sqrt()[:, None]


def append(past: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """[B, P - 1, I, D] and the next n positions -> both together, and the past that follows."""
    both = torch.cat([past, x], dim=1)
    return both, both[:, x.shape[1] :]


def positions_of(state: LayerState, n: int) -> Tensor:
    """[B, n]: where in their sequences the next n tokens of every lane are."""
    return state["position"][:, None] + torch.arange(n, device=state["position"].device)

"""A long short-term memory (Hochreiter & Schmidhuber 1997), the plain recurrent baseline."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decision_seq.backbones.block import BackboneConfig
from decision_seq.backbones.contract import LayerState, Layout, Mixer
from decision_seq.config import register
from decision_seq.ops.seeds import each_seed

WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


@register("lstm", "recurrent baseline; cost L, token after token; streams with two vectors a layer")
@dataclass(frozen=True)
class LSTMConfig(BackboneConfig):
    """As many hidden units as the width, in the same residual blocks as every other mixer."""

    def make_mixer(self, layout: Layout) -> Mixer:
        return LSTM(self)


class LSTM(Mixer):
    """y = hidden state of nn.LSTM. The forget gate's bias starts at 1, so that the cell remembers
    before it has learned to (Gers et al. 2000)."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        width = config.width
        self.lstm = nn.LSTM(width, width, batch_first=True)
        with torch.no_grad():  # gates in order: input, forget, cell, output
            self.lstm.get_parameter("bias_ih_l0")[width : 2 * width] = 1.0
            self.lstm.get_parameter("bias_hh_l0")[width : 2 * width] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        return each_seed(
            lambda x, *weights: self._run(x, None, list(weights))[0], x, *self._weights()
        )

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """Hidden state and cell, [B, D] each."""
        zeros = torch.zeros(batch_size, self.lstm.hidden_size, device=device, dtype=dtype)
        return {"hidden": zeros, "cell": zeros.clone()}

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, n, D], state"""
        start = state["hidden"].unsqueeze(0), state["cell"].unsqueeze(0)  # [1, B, D]: one layer
        y, hidden, cell = self._run(x, start, self._weights())
        return y, {"hidden": hidden[0], "cell": cell[0]}

    def _weights(self) -> list[Tensor]:
        return [getattr(self.lstm, name) for name in WEIGHTS]

    def _run(
        self, x: Tensor, start: tuple[Tensor, Tensor] | None, weights: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output, hidden state and cell of nn.LSTM, in the precision of its weights: under autocast
        the cell would lose in half precision what it adds up over a hundred tokens. cuDNN keeps
        what a backward pass needs only in training mode; gradients of an agent in eval mode take
        the kernels of torch itself."""
        unsupported = torch.is_grad_enabled() and not self.training
        cudnn = torch.backends.cudnn.flags(enabled=False) if unsupported else nullcontext()
        with torch.autocast(x.device.type, enabled=False), cudnn:
            x = x.to(weights[0].dtype)
            if start is None:
                start = (x.new_zeros(1, x.shape[0], self.lstm.hidden_size),) * 2
            return torch.lstm(x, start, weights, True, 1, 0.0, self.training, False, True)

"""The attentional Boltzmann machine (AttnBM, arXiv:2212.04692) and its denoising autoencoder.

The machine has N Gaussian visible units and one softmax hidden unit with M states. Its energy is
that of a modern Hopfield network, one step of attention lowers it, and unlike most Boltzmann
machines it has an exact likelihood, because it is a mixture of M unit Gaussians.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from decision_seq.hopfield.mixture import LOG_2PI, GaussianMixture


class BoltzmannMachine(nn.Module):
    """N visible and M hidden units, and the weights between them.

    Args:
        weight: [M, N], W: what a hidden unit, or a state of the hidden unit, is tied to.
        bias: [N], b.
        hidden_bias: [M], c.
    """

    def __init__(self, weight: Tensor, bias: Tensor, hidden_bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.hidden_bias = nn.Parameter(hidden_bias.detach().clone())

    def inputs(self, v: Tensor) -> Tensor:
        """What the hidden side gets from `v` [B, N]: W v + c, [B, M]."""
        return v @ self.weight.T + self.hidden_bias


class AttnBM(BoltzmannMachine):
    """E(v) = |v - b|^2 / 2 - logsumexp_mu(w_mu . v + c_mu), a stored pattern w_mu in each row."""

    @classmethod
    def from_mixture(cls, log_weights: Tensor, means: Tensor) -> AttnBM:
        """The machine whose distribution is sum_mu exp(log_weights[mu]) N(means[mu], 1).

        Only b + w_mu is fixed by that; b is set to the mixture's mean.
        """
        bias = log_weights.softmax(-1) @ means
        weight = means - bias
        return cls(weight, bias, log_weights - weight.square().sum(-1) / 2 - weight @ bias)

    # ---- density --------------------------------------------------------------------------

    def energy(self, v: Tensor) -> Tensor:
        """E [B] of `v` [B, N]."""
        return (v - self.bias).square().sum(-1) / 2 - torch.logsumexp(self.inputs(v), dim=-1)

    def log_partition(self) -> Tensor:
        """log Z, a scalar."""
        return torch.logsumexp(self._log_masses(), dim=-1) + self.weight.shape[1] / 2 * LOG_2PI

    def log_prob(self, v: Tensor) -> Tensor:
        """Exact log-density [B] of `v` [B, N]."""
        return -self.energy(v) - self.log_partition()

    def mixture(self) -> GaussianMixture:
        """The same distribution, written as a mixture (of one case, B = 1)."""
        return GaussianMixture(self._log_masses().log_softmax(-1)[None], self.bias + self.weight)

    def score(self, v: Tensor) -> Tensor:
        """Gradient [B, N] of the log-density with respect to `v`: where attention pulls it."""
        return self.attention(v) - v

    def attention(self, v: Tensor) -> Tensor:
        """One update of attention, b + W^T softmax(W v + c), [B, N]; never raises the energy."""
        return self.bias + self.hidden(v) @ self.weight

    def hidden(self, v: Tensor) -> Tensor:
        """Probabilities [B, M] of the hidden states given `v` [B, N]."""
        return self.inputs(v).softmax(-1)

    # ---- learning -------------------------------------------------------------------------

    def gradient(self, v: Tensor) -> dict[str, Tensor]:
        """Closed-form gradient of the mean log-density of `v` [B, N], by parameter name: what the
        data say minus what the machine expects."""
        clamped = self.hidden(v)  # [B, M]
        free = self._log_masses().softmax(-1)  # [M]
        means = self.bias + self.weight
        return {
            "weight": clamped.T @ v / len(v) - free[:, None] * means,
            "bias": (v - self.bias).mean(0) - free @ self.weight,
            "hidden_bias": clamped.mean(0) - free,
        }

    def score_matching_loss(self, clean: Tensor, noisy: Tensor, sigma: float) -> Tensor:
        """Denoising score matching: half the mean squared distance between the score at `noisy`
        [B, N] and that of the noise, (clean - noisy) / sigma^2."""
        wanted = (clean - noisy) / sigma**2
        return (self.score(noisy) - wanted).square().sum(-1).mean() / 2

    # ---- sampling, and missing parts ------------------------------------------------------

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` independent draws [count, N]; no Markov chain is needed."""
        states = torch.multinomial(
            self._log_masses().softmax(-1), count, replacement=True, generator=generator
        )
        noise = torch.randn(count, len(self.bias), generator=generator, dtype=self.bias.dtype)
        return (self.bias + self.weight)[states] + noise

    def marginal(self, dims: Sequence[int]) -> AttnBM:
        """The machine over `dims` alone, the others integrated out exactly: only c changes."""
        kept = list(dims)
        lost = self._others(kept)
        weight, bias = self.weight[:, lost], self.bias[lost]
        carried = self.hidden_bias + weight.square().sum(-1) / 2 + weight @ bias
        return AttnBM(self.weight[:, kept], self.bias[kept], carried)

    def conditional(self, observed: Tensor, dims: Sequence[int]) -> GaussianMixture:
        """Distribution of the other dimensions (in ascending order) given `observed` [B, len(dims)]
        at `dims`: again a mixture, whose mean is one step of attention from the observed part."""
        missing = self._others(dims)
        log_weights = self.marginal(dims).inputs(observed).log_softmax(-1)
        return GaussianMixture(log_weights, self.bias[missing] + self.weight[:, missing])

    def _others(self, dims: Sequence[int]) -> list[int]:
        given = set(dims)
        return [i for i in range(len(self.bias)) if i not in given]

    def _log_masses(self) -> Tensor:
        """[M] log-weights of the mixture, up to a constant."""
        return self.weight.square().sum(-1) / 2 + self.weight @ self.bias + self.hidden_bias


class SoftmaxAutoencoder(nn.Module):
    """Denoising autoencoder with tied weights and a softmax hidden layer.

    Trained on data with unit Gaussian noise it descends the same loss as denoising score matching
    of the AttnBM with the same parameters (arXiv:2212.04692).

    Args:
        weight: [M, N], encoder, and transposed the decoder.
        bias: [N], of the decoder.
        hidden_bias: [M], of the encoder.
    """

    def __init__(self, weight: Tensor, bias: Tensor, hidden_bias: Tensor) -> None:
        super().__init__()
        hidden, visible = weight.shape
        self.encoder = nn.Linear(visible, hidden, dtype=weight.dtype)
        self.decoder_bias = nn.Parameter(bias.detach().clone())
        with torch.no_grad():
            self.encoder.weight.copy_(weight)
            self.encoder.bias.copy_(hidden_bias)

    def forward(self, noisy: Tensor) -> Tensor:
        """Reconstruction [B, N] of `noisy` [B, N]."""
        code = torch.softmax(self.encoder(noisy), dim=-1)  # [B, M]
        return nn.functional.linear(code, self.encoder.weight.T, self.decoder_bias)

    def loss(self, clean: Tensor, noisy: Tensor) -> Tensor:
        """Half the mean squared error of the reconstruction of `clean` [B, N]."""
        return (self(noisy) - clean).square().sum(-1).mean() / 2

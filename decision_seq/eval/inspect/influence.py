"""What an agent's action depends on: derivatives by lag, token maps and memory length by layer.

B windows of K steps, T tokens a step, L = K * T, D = width. Lag k is the token k positions before
the one at which the action of the window's last step is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from decision_seq.agents import SequenceAgent
from decision_seq.backbones.contract import Mixer
from decision_seq.data.store import EpisodeStore
from decision_seq.data.windows import Batch, WindowSampler
from decision_seq.errors import UserError

FOREVER = 1e9  # tokens; what hardly decays remembers no longer than this
CHUNK_TOKENS = 4096  # tokens differentiated at once; bounds the memory that long windows take


@dataclass(frozen=True)
class Influence:
    """Norms of the derivative of the last step's action by every token it may depend on."""

    norms: np.ndarray  # [windows, lags] Frobenius norm of d action [A] / d token [D]
    tokens: list[str]  # [lags] kind of the token at that lag
    steps: np.ndarray  # [lags] how many environment steps back it lies, 0 in the last step

    @property
    def by_lag(self) -> np.ndarray:
        """[lags] mean over windows."""
        return self.norms.mean(axis=0)

    @property
    def by_step(self) -> np.ndarray:
        """[K] all tokens of a step taken together, mean over windows."""
        squares = np.zeros((len(self.norms), self.steps[-1] + 1))
        np.add.at(squares.T, self.steps, np.square(self.norms).T)
        return np.sqrt(squares).mean(axis=0)

    def half_life(self) -> int | None:
        """The lag within which half of the past's influence (lags 1 and more, summed) lies; None
        where the past has none."""
        past = np.cumsum(self.by_lag[1:])
        if past.size == 0 or past[-1] == 0:
            return None
        return int(np.searchsorted(past, past[-1] / 2)) + 1


@dataclass(frozen=True)
class LayerView:
    """One mixer on one window."""

    layer: int  # index of its block
    mixer: str  # class name
    token_map: np.ndarray | None  # [H, L, L], row: the token that looks, column: looked at
    memory: np.ndarray | None  # [L, channels] tokens until a state has decayed to 1/e


def measure_influence(agent: SequenceAgent, batch: Batch) -> Influence:
    """The influence of every token of the windows of `batch` on their last action."""
    size = max(1, CHUNK_TOKENS // (batch.mask.shape[1] * len(agent.config.tokens)))
    chunks = [_chunk(batch, i, size) for i in range(0, len(batch.mask), size)]
    norms = torch.cat([jacobian_norms(agent, chunk) for chunk in chunks])  # [B, L]
    if not norms.isfinite().all():
        raise UserError(
            "the derivative of the action is not finite; the agent's weights have blown up"
        )
    kinds = agent.config.tokens
    after = len(kinds) - 1 - agent.action_position  # tokens that follow the one read
    lags = norms.shape[1] - after
    positions = np.arange(lags)[::-1]  # of the token at each lag
    return Influence(
        norms=norms[:, :lags].flip(1).numpy(),
        tokens=[kinds[p % len(kinds)] for p in positions],
        steps=positions[0] // len(kinds) - positions // len(kinds),
    )


def jacobian_norms(agent: SequenceAgent, batch: Batch) -> Tensor:
    """[B, L]: Frobenius norm of d (action of the last step) / d (each embedded token).

    Tokens are taken after the embedding's LayerNorm, so that those of every kind have one size;
    actions are in units of their range, or logits if discrete.
    """
    leaves: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        leaves.append(tokens.detach().requires_grad_())
        return leaves[-1]

    hook = agent.embedding.register_forward_hook(cut)
    try:
        action = _forward(agent, batch)[:, -1]  # [B, A]
    finally:
        hook.remove()
    (tokens,) = leaves  # [B, L, D]
    squares = torch.zeros(
        tokens.shape[:2], dtype=torch.float64, device=tokens.device
    )  # can be tiny
    for component in action.unbind(-1):  # windows do not see each other: one sum serves them all
        (gradient,) = torch.autograd.grad(component.sum(), tokens, retain_graph=True)
        squares += gradient.double().square().sum(-1)  # can be below float32's range
    return squares.sqrt().cpu()


@torch.no_grad()
def view_layers(agent: SequenceAgent, batch: Batch) -> list[LayerView]:
    """Every mixer of the backbone on the first window of `batch`, in order of the layers.

    Of a mixer that a block applies repeatedly, it is the last application.
    """
    mixers = [
        (layer, module)
        for layer, block in enumerate(agent.backbone.blocks)
        for module in block.modules()
        if isinstance(module, Mixer)
    ]
    inputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs[module] = arguments[0][:1]

    hooks = [mixer.register_forward_pre_hook(keep) for _, mixer in mixers]
    try:
        _forward(agent, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [_view(layer, mixer, inputs[mixer]) for layer, mixer in mixers if mixer in inputs]


def full_windows(
    store: EpisodeStore, agent: SequenceAgent, length: int, count: int, seed: int
) -> Batch:
    """`count` random windows of `length` steps without pads. Raises UserError if no episode is
    that long."""
    episodes = np.flatnonzero(store.lengths >= length)
    if not len(episodes):
        raise UserError(
            f"{store.name}: its longest episode has {store.lengths.max()} steps, fewer than "
            f"the {length} of a window; choose a smaller --context-length"
        )
    returns = agent.config.returns
    stack = agent.config.frame_stack
    sampler = WindowSampler(
        store, episodes, length, returns, seed, agent.device, full=True, stack=stack
    )
    return sampler.batch(0, count)


def _forward(agent: SequenceAgent, batch: Batch) -> Tensor:
    values = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)
    return agent(values, batch.timesteps).float()  # [B, K, A]


def _chunk(batch: Batch, start: int, size: int) -> Batch:
    return Batch(**{name: value[start : start + size] for name, value in vars(batch).items()})


def _view(layer: int, mixer: Mixer, x: Tensor) -> LayerView:
    token_map = mixer.token_map(x)
    memory = mixer.memory_length(x)
    return LayerView(
        layer=layer,
        mixer=type(mixer).__name__,
        token_map=None if token_map is None else token_map[0].float().cpu().numpy(),
        memory=None if memory is None else memory[0].float().clamp(max=FOREVER).cpu().numpy(),
    )

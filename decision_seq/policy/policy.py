"""Policy: a snapshot of a trained agent that acts, lane by lane, and remembers what it has to."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces

from decision_seq.agents import SequenceAgent, load_agent
from decision_seq.errors import UserError
from decision_seq.policy.contexts import CONTEXTS
from decision_seq.policy.eager import EagerEngine, Engine, Inputs
from decision_seq.policy.graph import GraphEngine
from decision_seq.policy.native.engine import NativeEngine
from decision_seq.policy.seen import Seen
from decision_seq.run_folder import agent_path
from decision_seq.settings import Context
from decision_seq.shipped import run_at
from decision_seq.spaces import table_of

EngineName = Literal["auto", "native", "graph", "eager"]
ENGINES: dict[str, Any] = {"native": NativeEngine, "graph": GraphEngine, "eager": EagerEngine}
LARGEST = float(np.finfo(np.float32).max)  # engines take float32: what is beyond is infinite there


class Policy:
    """Acts in `lanes` parallel environments.

    The agent's weights are copied when the policy is made; what is trained or loaded afterwards is
    not seen. A policy remembers actions, rewards and what came before, so a loop passes it no more
    than observations and rewards.

    Args:
        agent: the trained agent.
        context: "window" recomputes the last K steps at each step (the papers' evaluation);
            "stream" carries the backbone's state at constant cost. They agree while t < K.
        target_return: return to ask for in the environment's units, one for all or [lanes]; agents
            without return tokens take none.
        lanes: number of parallel environments.
        seed: [lanes] of the draws of sampled actions, by default the lane's number. A lane's draws
            depend on its own seed and timestep alone.
        action_space: of the environment; actions are clipped to it, and remembered so.
        engine: "native" (C on a CPU), "graph" (a CUDA graph) or "eager" (PyTorch, the reference);
            auto takes the first that serves.

    Raises:
        UserError: the agent needs a target return, one does not fit `lanes` or is not finite, or
            the engine cannot serve it.
    """

    def __init__(
        self,
        agent: SequenceAgent,
        context: Context = "window",
        target_return: float | Sequence[float] | np.ndarray | None = None,
        lanes: int = 1,
        seed: Sequence[int] | np.ndarray | None = None,
        action_space: spaces.Space[Any] | None = None,
        engine: EngineName = "auto",
    ) -> None:
        if context not in CONTEXTS:
            raise UserError(f"context is {context!r}; it must be one of {', '.join(CONTEXTS)}")
        if not isinstance(lanes, int | np.integer) or lanes < 0:
            raise UserError(f"lanes is {lanes!r}; it must be a whole number, at least 0")
        if target_return is None and agent.config.follows_target:
            raise UserError("this agent is conditioned on a return; give it a target return")
        self.config, self.spec, self.context, self.lanes = agent.config, agent.spec, context, lanes
        self.seen = Seen(agent.spec, agent.config.frame_stack)
        self.observation_shape = self.seen.shape
        self.counts_rewards = self.config.follows_target and not self.config.returns.delayed
        self.action_scale = agent.action_scale.detach().cpu().numpy().astype(np.float32)
        self.space = action_space
        target = 0.0 if target_return is None else target_return
        asked = _a_number_each("target_return", target, lanes)
        # what is beyond float32 passes: a rollout refuses it in the end, with the episode's seed
        _finite("target_return", asked, np.finfo(np.float64).max)
        scaled = torch.as_tensor(asked).to(torch.float32) / self.config.returns.scale
        self.target = np.broadcast_to(scaled.numpy(), lanes).copy()
        self.seed = np.arange(lanes) if seed is None else np.asarray(seed)
        self.return_to_go, self.timestep = self.target.copy(), np.zeros(lanes, np.int64)
        acts, self.codec = agent.spec.action_space, agent.spec.action_codec
        width = acts.width if acts else agent.spec.action_dim
        shape = (lanes,) if agent.spec.discrete else (lanes, width)
        self.action = np.zeros(shape, np.int64 if agent.spec.discrete else np.float32)
        self.limits: tuple[np.ndarray, np.ndarray] | None = None
        if action_space is not None and not agent.spec.discrete:
            self.limits = action_limits(action_space, width)
        self.engine_name, self.engine = self._choose_engine(agent, engine)
        # what the last actions were made of: the same in units of `action_scale`, or logits
        self.predicted = np.zeros((lanes, agent.spec.action_dim), np.float32)

    def act(self, observation: Any, reward: Any = None) -> Any:
        """The next action.

        Args:
            observation: [lanes, S] of any float dtype, or stacks of frames [lanes, 4, H, W] uint8;
                with one lane also without the first dimension.
            reward: [lanes] or a number, received for the action before; None at an episode's start,
                and for agents that count no rewards.

        Returns:
            [lanes, A] float32 in the environment's units, or numbers [lanes] int64 as it counts its
            actions; without the first dimension where the observation had none.

        Raises:
            UserError: a shape that does not fit, a number that is not finite, or a reward is
                missing. The policy goes on from before.
        """
        return self._unpacked(self._act(observation, reward, greedy=False))

    def send(self, observations: np.ndarray, rewards: np.ndarray) -> None:
        """Begin `act` for observations [lanes, ...] as lanes give them; a GPU computes until
        `receive`, whose caller may do something else before."""
        self._begin(self.seen(observations, self.lanes)[0], rewards)

    def receive(self) -> np.ndarray:
        """What `act` gives for what was sent; of actions with several parts the rows of numbers
        [lanes, W] that lanes take."""
        return self._end(greedy=False)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        reward: Any = None,
    ) -> tuple[Any, None]:
        """`act` in Stable-Baselines3's form, which has no place for rewards: an agent that counts
        them needs `reward` as well.

        Args:
            observation: see `act`.
            state: ignored; the policy keeps its own.
            episode_start: [lanes] bool, lanes that begin an episode.
            deterministic: take the likeliest of discrete actions instead of sampling.
            reward: see `act`.

        Returns:
            The action, and None for the state.
        """
        begins = None
        if episode_start is not None:
            begins = np.atleast_1d(np.asarray(episode_start, bool))
        return self._unpacked(self._act(observation, reward, deterministic, begins)), None

    def reset(self, lanes: Any = None) -> None:
        """`lanes` (bool [lanes], or their numbers) begin an episode with their target; by default
        all of them. Others are untouched."""
        chosen = self._mask(lanes)
        self.return_to_go = np.where(chosen, self.target, self.return_to_go)
        self.timestep = np.where(chosen, 0, self.timestep)
        self.engine.reset(chosen)

    def keep(self, lanes: Any) -> None:
        """Only `lanes` (bool [lanes], or their numbers) go on, in their order."""
        chosen = self._mask(lanes)
        for name in ("target", "return_to_go", "timestep", "seed", "action"):
            setattr(self, name, getattr(self, name)[chosen])
        self.lanes = int(chosen.sum())
        self.engine.keep(chosen)

    def _act(
        self, observation: Any, reward: Any, greedy: bool, begins: np.ndarray | None = None
    ) -> Any:
        """`begins` [lanes] bool are reset, once what is given is known to be good."""
        seen, single = self.seen(observation, self.lanes)
        if seen.dtype.kind not in "biuf":  # objects, such as None in a list: NaN to an engine
            seen = _as_numbers("observation", seen, "numbers")
        for part in self.seen.parts(seen):  # a stream would never recover
            _finite("observation", part)
        number = isinstance(reward, float) and abs(reward) <= LARGEST  # most are: spared the arrays
        if self.counts_rewards and reward is not None and not number:
            reward = _a_number_each("reward", reward, self.lanes)
            _finite("reward", reward)
        if begins is not None:
            self.reset(begins)
        self._begin(seen, reward)
        action = self._end(greedy)
        return action[0] if single else action

    def _begin(self, seen: np.ndarray, reward: Any) -> None:
        if self.counts_rewards:
            self._count(reward)
        self._started = self.engine.start(self._inputs(seen))

    def _end(self, greedy: bool) -> Any:
        self.predicted = self._started()
        action = self._decode_action(self.predicted, greedy)
        # remembered is a copy, since its user may change it; discrete actions are counted from 0
        self.action = action - self.spec.action_start if self.spec.discrete else action.copy()
        self.timestep = self.timestep + 1
        return action

    def _inputs(self, observation: np.ndarray) -> Inputs:
        return Inputs(observation, self.action, self.return_to_go, self.timestep)

    def _count(self, reward: Any) -> None:
        """R_{t+1} = R_t - r_t in scaled units, in lanes that have acted."""
        acted = self.timestep > 0
        if reward is None and acted.any():
            raise UserError(
                "act() needs the reward of the step before, to count the return-to-go down; pass "
                "it, or call reset() where an episode begins"
            )
        if reward is None:
            return
        received = np.asarray(reward, np.float32)
        if self.config.returns.clipped:
            received = received.clip(-1, 1)
        after = self.return_to_go - received / np.float32(self.config.returns.scale)
        self.return_to_go = np.where(acted, after, self.return_to_go)

    def _decode_action(self, predicted: np.ndarray, greedy: bool) -> np.ndarray:
        """Predictions [lanes, A] -> actions as the environment takes them, or numbers [lanes]."""
        if not self.spec.discrete:
            action = predicted * self.action_scale
            if self.codec is not None:
                action = self._decode_parts(action, greedy)
            if self.limits is not None:
                action = action.clip(*self.limits).astype(np.float32, copy=False)
            return action
        if self.config.temperature and not greedy:  # the likeliest under Gumbel noise is a sample
            noise = gumbel_noise(self.seed, self.timestep, predicted.shape[-1])
            predicted = predicted / self.config.temperature + noise
        action = predicted.argmax(-1) + self.spec.action_start
        if isinstance(self.space, spaces.Discrete):  # fewer than the data's numbers allow for
            action = action.clip(self.space.start, self.space.start + self.space.n - 1)
        return action

    def _decode_parts(self, predicted: np.ndarray, greedy: bool) -> np.ndarray:
        """Predictions [lanes, A] -> rows [lanes, W]"""
        assert self.codec is not None
        noise, temperature = None, self.config.temperature
        if temperature and not greedy:
            draws = gumbel_noise(self.seed, self.timestep, predicted.shape[-1])
            noise = torch.from_numpy(draws)
        return self.codec.choose(torch.from_numpy(predicted), noise, temperature or 1.0).numpy()

    def _unpacked(self, action: Any) -> Any:
        """As the environment takes it, where it takes no vector and no number; of lanes nested as
        a vectorised environment does."""
        table = self.spec.action_space
        return action if table is None else table.unpack(action)

    def _mask(self, lanes: Any) -> np.ndarray:
        """[lanes] bool"""
        if lanes is None:
            return np.ones(self.lanes, bool)
        lanes = np.asarray(lanes)
        if lanes.dtype == bool and lanes.shape != (self.lanes,):
            raise UserError(f"lanes has shape {list(lanes.shape)}; expected [{self.lanes}]")
        mask = np.zeros(self.lanes, bool)
        mask[lanes] = True
        return mask

    def _choose_engine(self, agent: SequenceAgent, name: str) -> tuple[str, Engine]:
        if name != "auto" and name not in ENGINES:
            raise UserError(f"engine is {name!r}; it must be auto or one of {', '.join(ENGINES)}")
        if name != "auto" and (why := ENGINES[name].unusable(agent)):
            raise UserError(f"engine {name} cannot act for this agent: {why}; use auto")
        if name == "auto":
            name = next(n for n, engine in ENGINES.items() if not engine.unusable(agent))
            if name == "native" and not self._agree(agent):
                print("decision-seq: the agent has hooks or patches; PyTorch acts", file=sys.stderr)
                name = "eager"
        return name, ENGINES[name](agent, self.context, self.lanes)

    def _agree(self, agent: SequenceAgent) -> bool:
        """Whether C and PyTorch predict the same for two steps of two lanes: an agent whose methods
        were patched, or that has hooks, is not what C takes it for."""
        native, eager = (engine(agent, self.context, 2) for engine in (NativeEngine, EagerEngine))
        draw, shape = np.random.default_rng(0), (2, *self.action.shape[1:])
        for step in range(2):
            inputs = Inputs(
                draw.standard_normal((2, *self.observation_shape), np.float32),
                np.zeros(shape, self.action.dtype),
                draw.standard_normal(2, np.float32),
                np.full(2, step),
            )
            expected, found = eager.start(inputs)(), native.start(inputs)()
            if not np.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
                return False
        return True


def _a_number_each(name: str, given: Any, lanes: int) -> np.ndarray:
    """A number for all lanes or each, [] or [lanes] float64. Raises UserError if `given` is not."""
    numbers = _as_numbers(name, given, "a number, or one for each lane")
    if numbers.shape not in ((), (lanes,)):
        raise UserError(
            f"{name} has shape {list(numbers.shape)}; it must be a number, or [{lanes}], one for "
            "each lane"
        )
    return numbers


def _as_numbers(name: str, given: Any, wanted: str) -> np.ndarray:
    """float64; None becomes NaN. Raises UserError, which says what is `wanted`."""
    try:
        return np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {given!r:.80}; it must be {wanted}") from None


def _finite(name: str, numbers: np.ndarray, largest: float = LARGEST) -> None:
    """Raise UserError naming the first of `numbers`, [] or [lanes, ...], that is NaN or beyond
    `largest`."""
    # within the sum of squares so is each of them: one call, where looking at each takes three
    if numbers.dtype.kind != "f" or float(np.vdot(numbers, numbers)) < LARGEST * LARGEST:
        return
    bad = ~(abs(numbers.astype(np.float64)) <= largest)
    if bad.any():
        index = tuple(np.argwhere(bad)[0].tolist())
        lane = f" in lane {index[0]}" if index else ""
        place = f" at {list(index[1:])}" if index[1:] else ""
        raise UserError(f"{name} is {numbers[index]}{lane}{place}; give numbers finite in float32")


def action_limits(space: spaces.Space[Any], width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Lowest and highest actions [W], or of lanes [lanes, W], that an environment takes; None where
    it says nothing of actions of that width."""
    if isinstance(space, spaces.Box) and space.shape[-1:] == (width,):
        return space.low, space.high
    table = table_of(space, acts=True)
    return table.limits(space) if table.width == width else None


def load_policy(
    run: str | os.PathLike[str],
    context: Context = "window",
    target_return: float | Sequence[float] | np.ndarray | None = None,
    lanes: int = 1,
    checkpoint: Literal["last", "validation"] = "last",
    device: str = "cpu",
    **options: Any,
) -> Policy:
    """A policy of a trained run.

    Args:
        run: its folder, a folder that was shared, `hf://USER/NAME` of the Hugging Face hub,
            `zoo/NAME` of the agents that are shipped, or an agent file.
        context: see `Policy`.
        target_return: see `Policy`.
        lanes: see `Policy`.
        checkpoint: the last, or the one with the lowest validation loss.
        device: where to act.
        options: others of `Policy`.

    Raises:
        UserError: there is no such run, or it cannot be read.
    """
    path = downloaded(str(run)) if str(run).startswith("hf:/") else run_at(run)
    agent = load_agent(agent_path(path, checkpoint) if not path.is_file() else path, device)
    return Policy(agent, context, target_return, lanes, **options)


def gumbel_noise(seeds: np.ndarray, timesteps: np.ndarray, width: int) -> np.ndarray:
    """[lanes, width] standard Gumbel noise, a pure function of each lane's seed and timestep."""
    pairs = zip(seeds.tolist(), timesteps.tolist(), strict=True)
    return np.stack([np.random.default_rng(pair).gumbel(size=width) for pair in pairs])


def downloaded(address: str) -> Path:
    """The folder of `hf://USER/NAME`, from the hub or its cache; no file that could run is taken.

    Raises UserError where it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{address}: needs huggingface_hub; install it with pip install 'decision-seq[hub]'"
        ) from None
    name = address.removeprefix("hf:").strip("/")
    wanted = ["*.safetensors", "*.json", "*.jsonl", "*.yaml", "README.md"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the library's, its network's and the hub's own
        said = " ".join(str(error).split())
        raise UserError(f"{address}: cannot be downloaded ({said:.200})") from None

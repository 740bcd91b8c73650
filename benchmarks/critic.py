"""Is a critic right about actions? Asked of the simulator, before any policy is trained.

    python -m benchmarks.critic hopper replay replay-5
    python -m benchmarks.critic walker2d medium+expert expert --set width=128 expectile=0.9

At states drawn from the data MuJoCo is set to the state, and what follows an action is rolled out:
`HORIZON` steps, discounted, by a behaviour policy of the package (third argument) that takes its
mean action. Asked are the data's own action, the same moved up the gradient of Q, the same moved in
a random direction, and actions around it, which Q ranks.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np
import torch
from torch import Tensor

from decision_seq.behaviours.actors import POLICY_DIRECTORY, MLPPolicy
from decision_seq.config import build, parse_overrides
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.transforms import ObservationNorm
from decision_seq.envs.mujoco import MujocoLanes
from decision_seq.envs.registry import env_id, make
from decision_seq.hardware import hardware
from decision_seq.values.critic import Critic, ValuesConfig
from decision_seq.values.fit import ensure_values, read_diagnostics
from decision_seq.values.transitions import Transitions

BODIES = ("hopper", "walker2d", "halfcheetah")
HORIZON = 300
LENGTHS = (0.1, 0.3)  # of a move, in units of the action's bounds
AROUND, SPREAD = 8, 0.3  # actions that are ranked, and their standard deviation
APART = 1e-3  # of a state that is asked again, in standard deviations of the data
Values = Callable[[np.ndarray], np.ndarray]  # of observations [B, S]: [B]


class Simulator(MujocoLanes):
    """The return of an action in a state, and of a policy from there on, discounted by the default,
    0.99, whatever the critic's discount."""

    def __init__(self, body: str, policy: MLPPolicy, lanes: int) -> None:
        name = env_id(body)
        super().__init__(name, make(name), lanes)
        self.policy, self.rng = policy, np.random.default_rng(0)

    def worths(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        steps: int = HORIZON,
        v: Values | None = None,
    ) -> np.ndarray:
        """[B] of [B, S] and [B, A], a lane each; `v` says what is still to come after so many
        steps."""
        self.reset([0] * len(actions))
        self._place(observations)
        active, total = np.ones(len(actions), bool), np.zeros(len(actions))
        for t in range(steps):
            seen, rewards, terminated, _ = self.step(actions, active)
            total += ValuesConfig.discount**t * rewards
            active = active & ~terminated
            actions = self.policy.act(seen, self.rng, deterministic=True)
        if v is not None:
            total += ValuesConfig.discount**steps * active * v(seen)
        return total

    def _place(self, observations: np.ndarray) -> None:
        """Lane i into the state behind observation i [B, S]: positions but x, and velocities."""
        for data, observation in zip(self._data, observations, strict=True):
            data.qpos[:] = [0.0, *observation[: len(data.qpos) - 1]]
            data.qvel[:] = observation[len(data.qpos) - 1 :]
            mujoco.mj_forward(self._env.model, data)  # type: ignore[attr-defined]
        self._x[:] = 0.0


def moves(
    critic: Critic, seen: Tensor, actions: Tensor, observations: np.ndarray, sim: Simulator
) -> None:
    """Print what the simulator gives for moves up Q's gradient and for random ones."""
    asked = actions.clone().requires_grad_(True)
    q = critic.q(seen, asked).amin(0)  # [B]
    (up,) = torch.autograd.grad(q.sum(), asked)
    base = sim.worths(observations, actions.numpy())
    over = _correlation(q.detach().numpy(), base)
    print(f"Q against what the simulator gives, over states: correlation {over:.2f}")
    generator = torch.Generator().manual_seed(0)
    for length in LENGTHS:
        for name, way in (("up Q", up), ("random", torch.randn(up.shape, generator=generator))):
            step = length * way / way.norm(dim=1, keepdim=True).clamp(min=1e-9)
            moved = (actions + step).clamp(-1, 1)
            with torch.no_grad():
                said = float((critic.q(seen, moved).amin(0) - q).mean())
            gain = sim.worths(observations, moved.numpy()) - base
            error = gain.std() / len(gain) ** 0.5
            print(
                f"moved by {length} {name}: better in {np.mean(gain > 0):.1%}, gain "
                f"{gain.mean():.2f} ± {error:.2f} (standard error), Q says {said:.2f}"
            )


def ranks(
    critic: Critic,
    seen: Tensor,
    actions: Tensor,
    observations: np.ndarray,
    sim: Simulator,
    v: Values | None,
) -> None:
    """Print how well Q ranks actions around the data's, and what keeps it from it: how well the
    simulator agrees with itself from states a thousandth apart, Q with what it was fitted to,
    r + gamma V(s'), and that, after 1 and 10 steps, with the simulator."""
    rng = np.random.default_rng(0)
    noise = SPREAD * rng.standard_normal((AROUND, *actions.shape))
    tried = np.clip(actions.numpy() + noise, -1, 1).astype(np.float32)  # [n, B, A]
    with torch.no_grad():
        q = critic.q(seen.expand(AROUND, -1, -1), torch.from_numpy(tried)).amin(0).numpy()  # [n, B]

    def given(near: np.ndarray, steps: int = HORIZON, v: Values | None = None) -> np.ndarray:
        return np.array([sim.worths(near, each, steps, v) for each in tried])  # [n, B]

    worths = given(observations)
    moved = APART * observations.std(0) * rng.standard_normal(observations.shape)
    pairs = {
        "Q and the simulator": (q, worths),
        "the simulator and itself": (worths, given(observations + moved.astype(np.float32))),
    }
    if v is not None:
        one, ten = given(observations, 1, v), given(observations, 10, v)
        pairs |= {"Q and r + gamma V": (q, one), "r + gamma V and the simulator": (one, worths)}
        pairs["ten steps and V, and the simulator"] = (ten, worths)
    among, over = worths.std(0).mean(), worths.mean(0).std()
    print(f"the simulator's returns differ by {among:.2f} among actions, {over:.2f} over states")
    print(f"rank correlation over {AROUND} actions of a state, mean of the states:")
    for name, (some, others) in pairs.items():
        found = [
            _correlation(a.argsort().argsort(), b.argsort().argsort())
            for a, b in zip(some.T, others.T, strict=True)
            if np.ptp(a) > 0 and np.ptp(b) > 0
        ]
        print(f"  {name}: {np.mean(found):.2f} ± {np.std(found) / len(found) ** 0.5:.2f}")


def ask(
    critic: Critic,
    store: EpisodeStore,
    scale: Tensor,
    arguments: argparse.Namespace,
    has_v: bool = True,
) -> None:
    """Print all of it for a critic of `store`, whose actions are in units of `scale` [A], as the
    `arguments` of `questions` say."""
    body, policy, states = arguments.body, arguments.policy, arguments.states
    transitions, norm = Transitions.of(store, scale), ObservationNorm.of(store.observations)
    rows = np.random.default_rng(0).choice(store.steps, states, replace=False)
    seen, actions = transitions.observe(torch.from_numpy(rows)), transitions.actions[rows]
    goes_on = MLPPolicy.load(POLICY_DIRECTORY / f"{body}-{policy}.safetensors")
    sim = Simulator(body, goes_on, states)

    @torch.no_grad()
    def v(observations: np.ndarray) -> np.ndarray:
        return critic.value(torch.from_numpy((observations - norm.mean) / norm.std)).numpy()

    asked = (critic, seen, actions, store.observations[rows], sim)
    moves(*asked)
    ranks(*asked, v if has_v else None)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def questions(doc: str) -> argparse.ArgumentParser:
    """The arguments of who asks a critic: `doc` is the asking module's."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("body", choices=BODIES)
    parser.add_argument("tiers", help="of the data, as medium+expert")
    parser.add_argument("policy", help="that goes on, as replay-5 or expert")
    parser.add_argument("--states", type=int, default=200)
    parser.add_argument("--set", nargs="*", default=[], help="settings", dest="settings")
    return parser


def sources(arguments: argparse.Namespace) -> list[str]:
    """The datasets that are asked about."""
    return [f"decision-seq/{arguments.body}/{tier}-v0" for tier in arguments.tiers.split("+")]


def main() -> None:
    parser = questions(__doc__ or "")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = open_store(sources(arguments))
    config = build(ValuesConfig, parse_overrides(arguments.settings), "--set", "values")
    scale = torch.ones(store.action_dim)
    with tempfile.TemporaryDirectory() as folder:
        critic = ensure_values(Path(folder), store, config, arguments.seed, scale)
        print(arguments, hardware(torch.device("cpu")), read_diagnostics(Path(folder)), sep="\n")
    ask(critic, store, scale, arguments)


if __name__ == "__main__":
    main()

"""Rollouts: targets x episodes as parallel lanes of one environment, one row an episode."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from decision_seq.agents import SequenceAgent
from decision_seq.agents.fit import check_fit
from decision_seq.agents.return_prior import ReturnPrior
from decision_seq.envs.atari import FRAME_STACK
from decision_seq.envs.fastest import open_lanes
from decision_seq.envs.lanes import Lanes
from decision_seq.envs.quiet import quiet_mujoco
from decision_seq.envs.reference_scores import scaled, scoring
from decision_seq.errors import UserError
from decision_seq.eval.rows import PATIENCE, Episode
from decision_seq.policy import Policy
from decision_seq.settings import Context, Simulator

KEPT = 0.75  # finished lanes are dropped once no more than this share of those seen go on


@dataclass(frozen=True)
class _Records:
    """What `_run` measured, [lanes] each."""

    targets: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    milliseconds: np.ndarray
    novelty: list[np.ndarray]  # of every step, with a prior


@quiet_mujoco()
def rollout(
    agent: SequenceAgent,
    env: str,
    targets: Sequence[float] | Literal["auto"],
    episodes: int,
    seed: int,
    context: Context,
    on_step: Callable[[int, int], None] = lambda done, lanes: None,
    prior: ReturnPrior | None = None,
    target_quantile: float = 0.9,
    actions: list[np.ndarray] | None = None,
    max_steps: int | None = None,
    references: Mapping[str, tuple[float, float]] | None = None,
    simulator: Simulator = "auto",
) -> list[Episode]:
    """Run `episodes` whole episodes for each target return, side by side.

    Episode i of every target starts from environment seed `seed + i`: what a lane meets depends
    neither on how many lanes run beside it nor on the target, so agents can be compared in pairs.

    Args:
        agent: in eval mode.
        env: environment name or gymnasium id.
        targets: returns to ask for, or "auto": `prior` proposes one for each episode, from its own
            first observation and nothing else; ignored by an agent that takes none.
        episodes: number for each target.
        seed: of the first episode.
        context: "window" or "stream".
        on_step: called after every step with (finished lanes, lanes).
        prior: proposes targets, and says how far the visited states lie from the data.
        target_quantile: of the return given the first observation, for "auto".
        actions: to this list every step's are added, [lanes, ...] as the environment took them.
        max_steps: where episodes are cut off; by default only in an environment that names no time
            limit, at ten times the longest episode of the data.
        references: (random, expert) returns of normalized scores by name, the one to use first; by
            default the published ones.
        simulator: `warp` simulates on the agent's device.

    Raises:
        UserError: the agent does not fit the environment, or has no target to follow, or an
            episode's return is not finite.
    """
    rule = _target_rule(agent, targets, prior)
    wanted = [float(t) for t in targets] if rule == "given" else [None]
    lane_targets = [t for t in wanted for _ in range(episodes)]
    lane_seeds = [seed + i for _ in wanted for i in range(episodes)]

    def choose(observations: torch.Tensor) -> torch.Tensor | None:
        """Targets [lanes] once the first observations [lanes, S] are known."""
        if rule == "auto":
            assert prior is not None
            return prior.propose(observations, target_quantile)
        return torch.tensor(lane_targets, dtype=torch.float64) if rule == "given" else None

    stack = agent.config.frame_stack or FRAME_STACK
    lanes = open_lanes(env, len(lane_seeds), stack, simulator, agent.device)
    if max_steps is None and lanes.limit is None:
        max_steps = PATIENCE * (agent.spec.max_timestep + 1)
    known = scoring(lanes.id) if references is None else references
    try:
        check_fit(agent.spec, lanes.envs[0])
        records = _run(
            agent, lanes, choose, lane_seeds, context, on_step, prior, actions, max_steps,
            _groups(agent, len(lane_seeds), simulator),
        )  # fmt: skip
        _check_finite(records, lanes.id, lane_seeds)
        success = lanes.success
    finally:
        lanes.close()
    novelty = np.stack(records.novelty) if prior else None  # [steps, lanes]

    def distances(lane: int) -> dict[str, Any]:
        if novelty is None:
            return {"ood": None, "ood_mean": None, "ood_max": None}
        own = novelty[: records.lengths[lane], lane]
        return {
            "ood": [round(float(d), 2) for d in own],
            "ood_mean": float(own.mean()),
            "ood_max": float(own.max()),
        }

    return [
        Episode(
            target=None if rule is None else float(records.targets[i]),
            target_rule=rule,
            target_quantile=target_quantile if rule == "auto" else None,
            env_seed=lane_seeds[i],
            episode_return=float(records.returns[i]),
            length=int(records.lengths[i]),
            success=None if success is None else bool(success[i]),
            max_steps=max_steps,
            **_scores(known, float(records.returns[i])),
            milliseconds_per_step=round(float(records.milliseconds[i] / records.lengths[i]), 4),
            **distances(i),
        )
        for i in range(len(lane_seeds))
    ]


def _scores(references: Mapping[str, tuple[float, float]], episode_return: float) -> dict[str, Any]:
    first = next(iter(references), None)
    scores = {form: scaled(episode_return, of) for form, of in references.items()}
    return {
        "normalized_score": None if first is None else scores[first],
        "score_reference": first,
        "reference_returns": None if first is None else references[first],
        "normalized_scores": scores,
    }


def _groups(agent: SequenceAgent, count: int, simulator: Simulator) -> int:
    """Of lanes that take turns: where a GPU acts and processor cores simulate."""
    return 2 if agent.device.type == "cuda" and simulator == "auto" and count > 1 else 1


def _target_rule(
    agent: SequenceAgent, targets: Sequence[float] | Literal["auto"], prior: ReturnPrior | None
) -> Literal["given", "auto"] | None:
    """Who chooses the targets; None for an agent that takes none."""
    if not agent.config.follows_target:
        return None
    if not targets:
        raise UserError(
            "this agent follows a target return; name at least one with --targets, or auto"
        )
    if targets != "auto":
        return "given"
    if prior is None and agent.spec.frames:
        raise UserError(
            "targets are auto, which takes vector observations, but this agent sees frames; name "
            "targets with --targets"
        )
    if prior is None:
        raise UserError(
            "targets are auto, but the run has no return prior; run its training command again "
            "with --resume, which fits one, or name targets with --targets"
        )
    return "auto"


def _run(
    agent: SequenceAgent,
    lanes: Lanes,
    choose: Callable[[torch.Tensor], torch.Tensor | None],
    seeds: list[int],
    context: Context,
    on_step: Callable[[int, int], None],
    prior: ReturnPrior | None,
    actions: list[np.ndarray] | None,
    max_steps: int | None,
    groups: int,
) -> _Records:
    """One episode in every lane. With two groups of lanes a GPU acts for one while the other is
    simulated."""
    count = len(seeds)
    observations = lanes.reset(seeds)
    target = choose(torch.from_numpy(observations))
    targets = None if target is None else target.numpy()
    rewards, active = np.zeros(count), np.ones(count, bool)
    acting = []
    for own in np.array_split(np.arange(count), groups):
        asked, starts = None if targets is None else targets[own], [seeds[i] for i in own]
        policy = Policy(agent, context, asked, len(own), starts, lanes.action_space)
        acting.append(_Acting(policy, own))
        policy.send(observations[own], rewards[own])
    records = _Records(
        targets=np.zeros(count) if targets is None else targets,
        returns=np.zeros(count),
        lengths=np.zeros(count, np.int64),
        milliseconds=np.zeros(count),
        novelty=[],
    )
    taken = np.concatenate([group.policy.action for group in acting])  # [lanes, ...]
    while active.any():
        if prior is not None:
            novelty = np.zeros(count)
            novelty[active] = prior.novelty(torch.from_numpy(observations[active])).numpy()
            records.novelty.append(novelty)
        start, went = time.perf_counter(), active.copy()
        for group in acting:
            mine = went if len(acting) == 1 else group.among(active)
            if not np.count_nonzero(mine):
                continue
            taken[group.going] = group.policy.receive()
            seen, earned, terminated, truncated = lanes.step(taken, mine)
            observations[mine], rewards[mine] = seen[mine], earned[mine]
            np.add(records.lengths, 1, out=records.lengths, where=mine)
            if max_steps is not None:
                truncated |= records.lengths >= max_steps
            active &= ~(mine & (terminated | truncated))
            group.go_on(active, observations, rewards)
        spent = 1e3 * (time.perf_counter() - start)
        np.add(records.milliseconds, spent, out=records.milliseconds, where=went)
        np.add(records.returns, rewards, out=records.returns, where=went)
        if actions is not None:
            actions.append(taken.copy())
        on_step(count - int(np.count_nonzero(active)), count)
    return records


@dataclass
class _Acting:
    """A policy and the lanes that it still looks at."""

    policy: Policy
    going: np.ndarray  # their numbers, [policy.lanes]

    def among(self, active: np.ndarray) -> np.ndarray:
        """Those of `active` [lanes] bool that are its own."""
        own = np.zeros_like(active)
        own[self.going] = active[self.going]
        return own

    def go_on(self, active: np.ndarray, observations: np.ndarray, rewards: np.ndarray) -> None:
        """Begin the next step of those that are still `active` [lanes] bool."""
        left = active[self.going]
        count = np.count_nonzero(left)  # a third of the time of left.mean()
        if not count:
            return
        if count <= KEPT * len(left):
            self.policy.keep(left)
            self.going = self.going[left]
        self.policy.send(observations[self.going], rewards[self.going])


def _check_finite(records: _Records, env: str, seeds: list[int]) -> None:
    """Raise UserError where a return or a state was not finite: such a row could not be kept."""
    bad = np.flatnonzero(~np.isfinite(records.returns + sum(records.novelty)))
    if len(bad):
        raise UserError(
            f"{env}: {len(bad)} of {len(seeds)} episodes met NaN or infinity, first that of seed "
            f"{seeds[bad[0]]}; ask for targets near the data's returns, or look for the fault in "
            "the environment's rewards and observations"
        )

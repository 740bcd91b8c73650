"""Environment steps a second, beside the papers' loop; and what a streamed step costs later on."""

from __future__ import annotations

import contextlib
import functools
import itertools
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks import models
from benchmarks.measure import (
    Call,
    Listing,
    Options,
    Row,
    Table,
    benchmark,
    installed,
    interleaved,
    timer,
)
from decision_seq.agents import SequenceAgent
from decision_seq.backbones.contract import EVERY
from decision_seq.envs.fastest import open_lanes
from decision_seq.envs.lanes import Lanes
from decision_seq.envs.mujoco import MujocoLanes
from decision_seq.envs.registry import MUJOCO_IDS
from decision_seq.eval.rollout import episodes
from decision_seq.eval.rollout.episodes import rollout
from decision_seq.policy import Policy
from decision_seq.policy.policy import EngineName
from decision_seq.settings import Context

ENV, OBSERVATIONS, ACTIONS = "HalfCheetah-v5", 17, 6  # its episodes never end early
PAPERS = "the papers' loop"
LANES = (1, 4, 16, 64, 256)


class Rollout:
    """Lanes and an agent that go on for ever: an episode's end starts the next in all lanes."""

    def __init__(
        self, backbone: str, lanes: Lanes, context: Context, device: str, published: bool
    ) -> None:
        self.lanes, agent = lanes, models.agent(backbone, OBSERVATIONS, ACTIONS).to(device)
        self.count = len(lanes.reset(range(self.size(lanes))))
        if published:
            as_published(agent)
        engine: EngineName = "eager" if published else "auto"
        self.policy = Policy(
            agent, context, 6000.0, self.count, None, lanes.action_space, engine=engine
        )
        self.restart()

    @staticmethod
    def size(lanes: Lanes) -> int:
        return len(lanes._observations)

    def restart(self) -> None:
        """All lanes at the start of an episode."""
        self.observations = self.lanes.reset(range(self.count))
        self.policy.reset()
        self.rewards = np.zeros(self.count)
        self.active = np.ones(self.count, bool)

    def step(self) -> None:
        """As eval/rollout/episodes.py does it."""
        self.policy.send(self.observations, self.rewards)
        actions = self.policy.receive()
        self.observations, self.rewards, _, truncated = self.lanes.step(actions, self.active)
        if truncated.any():
            self.restart()

    def steps(self, number: int, path: str | None = None) -> Call:
        """`number` steps, by the scan of that name."""

        def run() -> None:
            with models.scan_backend(path):
                for _ in range(number):
                    self.step()

        return run


@benchmark("rollouts", "environment steps of Mamba and attention agents, beside the papers' loop")
def rollouts(options: Options) -> Iterator[Table]:
    contenders: dict[str, Call] = {}
    units: dict[str, float] = {}

    def add(
        name: str, number: int, backbone: str, count: int, context: Context, **how: Any
    ) -> None:
        lanes = Lanes(ENV, 1) if name == PAPERS else open_lanes(ENV, count)
        run = Rollout(backbone, lanes, context, options.device, name == PAPERS)
        run.steps(25, **how)()  # beyond the K steps in which a window grows
        contenders[name], units[name] = run.steps(number, **how), number * count

    scan = "reference" if options.device == "cpu" else "torch"
    add(PAPERS, 20, "mamba", 1, "window", path=scan)
    add("mamba window, 1 lane", 20, "mamba", 1, "window")
    add("mamba stream, 1 lane", 100, "mamba", 1, "stream")
    add("mamba stream, 8 lanes", 25, "mamba", 8, "stream")
    add("mamba stream, 32 lanes", 10, "mamba", 32, "stream")
    add("attention window, 32 lanes", 3, "attention", 32, "window")
    add("attention stream, 1 lane", 50, "attention", 1, "stream")
    add("attention stream, 32 lanes", 10, "attention", 32, "stream")
    rows = interleaved(contenders, options, units)
    for row in rows:
        row.note = f"{1 / np.median(row.seconds):.0f} steps a second"
    yield Table(
        f"Milliseconds an environment step, {ENV}, simulator included",
        rows,
        base=PAPERS,
        faster=True,
        note="The papers' loop recomputes the window of one environment at every step, with the "
        "published block in PyTorch: transformers' MambaMixer, without which it is our own mixer "
        f"and the path `{scan}`. Ours takes the best path.",
    )


@benchmark("turns", "where a rollout's time goes, with one group of lanes and two that take turns")
def turns(options: Options) -> Iterator[Listing]:
    agent = models.agent("mamba", OBSERVATIONS, ACTIONS).to(options.device).eval()
    counts, steps = ((4,), 30) if options.quick else ((64, 256, 1024), 200)
    rows = []
    for count, groups in itertools.product(counts, (1, 2)):
        spent: dict[str, float] = {}
        with contextlib.ExitStack() as patches:
            patches.enter_context(patch.object(episodes, "_groups", lambda *_, n=groups: n))
            for owner, name in ((Policy, "send"), (Policy, "receive"), (MujocoLanes, "step")):
                timed = clocked(getattr(owner, name), spent)
                patches.enter_context(patch.object(owner, name, timed))
            start = time.perf_counter()
            rollout(agent, ENV, [6000.0], count, 0, "stream", max_steps=steps)
            total = time.perf_counter() - start
        each = [f"{1e3 * spent[name] / steps:.3g}" for name in ("send", "receive", "step")]
        rows.append([str(count), str(groups), *each, f"{1e3 * total / steps:.3g}"])
    yield Listing(
        f"Where a rollout's time goes, {ENV}, Mamba in a stream, milliseconds a step of all lanes",
        ["lanes", "groups", "sending to the policy", "waiting for it", "MuJoCo", "in all"],
        rows,
        note="With two groups a GPU acts for one while processor cores simulate the other. In all "
        "includes starting the episodes, and on a GPU recording a step.",
    )


def clocked(method: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    """The same, which adds the seconds it takes to those under its name."""

    @functools.wraps(method)
    def run(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*arguments)
        finally:
            passed = time.perf_counter() - start
            spent[method.__name__] = spent.get(method.__name__, 0.0) + passed

    return run


def as_published(agent: SequenceAgent) -> None:
    """Everything is computed for every token, and by transformers' mixer, which without mamba-ssm
    computes as the published block does on a CPU."""
    compute = agent.backbone.forward
    agent.backbone.forward = lambda x, output_slice=EVERY: compute(x)[:, output_slice]  # type: ignore[method-assign]
    if not installed("transformers"):
        return
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    for block in agent.backbone.blocks:
        theirs = MambaMixer(MambaConfig(hidden_size=models.WIDTH, state_size=16), layer_idx=0)
        theirs.load_state_dict(block.mixer.state_dict())  # type: ignore[union-attr]
        theirs.outputs = lambda x, read, mixer=theirs: mixer(x)[:, read]  # type: ignore[assignment]
        block.mixer = theirs.to(agent.device).eval()


@benchmark("simulators", "stepping MuJoCo alone: lanes beside gymnasium's environments", tables=4)
def simulators(options: Options) -> Iterator[Table]:
    for env in MUJOCO_IDS[::2]:  # v5
        contenders, units = {}, {}
        for count in (2, 8, 40):
            kinds = {"gymnasium": Lanes(env, count), "ours": open_lanes(env, count)}
            for kind, lanes in kinds.items():
                lanes.reset(range(count))
                space: Any = lanes.action_space
                actions = np.zeros((count, *space.shape), np.float32)
                name, number = f"{kind}, {count} lanes", max(2, 80 // count)
                contenders[name] = stepping(lanes, actions, number)
                units[name] = number * count
        yield Table(
            f"Milliseconds a step of a lane, {env}",
            interleaved(contenders, options, units),
            base="gymnasium, 40 lanes",
            faster=True,
        )


def stepping(lanes: Lanes, actions: np.ndarray, number: int) -> Call:
    active = np.ones(len(actions), bool)
    return lambda: [lanes.step(actions, active) for _ in range(number)]


@benchmark("lanes", "one step of the agent alone for 1 to 256 lanes")
def lanes(options: Options) -> Iterator[Table]:
    contenders, units = {}, {}
    for count in LANES:
        name, number = f"mamba stream, {count} lanes", max(2, 64 // count)
        contenders[name] = acting("mamba", count, number, options.device)
        units[name] = number * count
        if options.device != "cpu":
            name += ", not recorded as a graph"
            contenders[name] = acting("mamba", count, number, options.device, "eager")
            units[name] = number * count
    yield Table(
        "Milliseconds of the agent for one step of one lane",
        interleaved(contenders, options, units),
        base=f"mamba stream, {LANES[0]} lanes",
        faster=True,
    )


def acting(
    backbone: str, count: int, number: int, device: str, engine: EngineName = "auto"
) -> Call:
    """Steps of a policy alone, which carries its state on."""
    agent = models.agent(backbone).to(device)
    policy = Policy(agent, "stream", 3600.0, count, engine=engine)
    observations = np.random.default_rng(0).standard_normal(
        (count, models.OBSERVATIONS), np.float32
    )
    rewards = np.ones(count)

    def run(steps: int = number) -> None:
        for _ in range(steps):
            policy.act(observations, rewards)

    run(models.STEPS + 2)  # from then on a GPU's are recorded
    return run


@benchmark("endless", "a streamed Mamba step after up to 100,000 steps (or 10,000)")
def endless(options: Options) -> Iterator[Table]:
    total, parts = (10_000 if options.brief else 100_000), 10
    calls = 10  # a part
    steps = total // parts // calls
    run = timer(acting("mamba", 1, steps, options.device), options)
    rows = []
    for part in range(parts):
        seconds = [run() / steps for _ in range(calls)]
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        name = f"to step {(part + 1) * total // parts}"
        rows.append(Row(name, seconds, note=f"peak {used:.0f} MiB"))
    yield Table(
        "Milliseconds of one streamed step, one lane, as the episode goes on",
        rows,
        base=rows[0].name,
    )

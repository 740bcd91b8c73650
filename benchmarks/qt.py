"""Does a critic guide better that is trained beside the actor, on the actor's own actions? The
scheme of QT (arXiv:2405.17098), in training alone, with any agent of the package.

    python -m benchmarks.qt hopper replay replay-5 --out runs/qt --set agent.preset=decision-mamba
    decision-seq evaluate runs/qt --targets 3400 --context stream
"""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.critic import ask, questions, sources
from decision_seq.agents.base import SequenceAgent
from decision_seq.data.store import open_store
from decision_seq.data.windows import Batch
from decision_seq.ops.adamw import AdamW
from decision_seq.run_config import load_run_config
from decision_seq.training.distributed import joined
from decision_seq.training.loop import open_runs, train_all
from decision_seq.training.step import gradient_step
from decision_seq.values.critic import Critic, ValuesConfig


class Beside:
    """In the place of an agent's guide: a gradient step of the critic, then eta Q_i(s, predicted
    action) / mean |Q_j| off the agent's error.

        Q_i(s_t, a_t) by sum_{j=t}^{T-1} gamma^{j-t} r_j + gamma^{T-t} min_i Q'_i(s_T, pi'(s_T))

    T is the window's last step, pi' and Q' are slow copies. Where an episode ends within the window
    its rewards are all there is.
    """

    def __init__(self, agent: SequenceAgent, config: ValuesConfig, eta: float) -> None:
        width = agent.spec.observation_shape[0]
        self.critic = Critic(width, agent.spec.action_dim, agent.spec.discrete, config)
        self.slow = copy.deepcopy(self.critic.q).requires_grad_(False)
        self.agent, self.actor = agent, copy.deepcopy(agent).eval().requires_grad_(False)
        weights = self.critic.q.parameters()
        self.optimizer = AdamW(weights, lr=config.learning_rate, weight_decay=0, fused=True)
        self.config, self.eta, self.steps = config, eta, 0

    def __call__(
        self, errors: Tensor, predicted: Tensor, values: dict[str, Tensor], batch: Batch
    ) -> Tensor:
        """[B, K] from errors [B, K] and predictions [B, K, A]."""
        states, rate = values["observation"], self.config.target_rate
        target, known = self.targets(values, batch)
        q = self.critic.q(states, values["action"])  # [E, B, K]
        loss = F.mse_loss(q, target.expand_as(q), reduction="none") * known
        self.optimizer.zero_grad(set_to_none=True)
        (loss.sum() / known.sum()).backward()
        self.optimizer.step()
        pairs = [(self.slow, self.critic.q), (self.actor, self.agent)]
        with torch.no_grad():
            for old, new in pairs:
                for a, b in zip(old.parameters(), new.parameters(), strict=True):
                    a.lerp_(b, rate)
        self.steps += 1
        one, other = self.critic.q(states, predicted)[:2].roll(self.steps % 2, 0)  # [B, K] each
        return errors - self.eta * one / (other.detach() * batch.mask).abs().mean()

    @torch.no_grad()
    def targets(self, values: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, K], and where they are known [B, K]."""
        to_go = batch.returns_to_go * self.agent.config.returns.scale
        last = batch.mask.sum(1) - 1  # [B]
        ended = ~batch.mask[:, -1]
        rows = torch.arange(len(last))
        states = values["observation"][rows, last]
        acts = self.actor(values, batch.timesteps)[rows, last]
        later = torch.where(ended, to_go[rows, last], self.slow(states, acts).amin(0))
        target = torch.zeros_like(to_go)
        for t in reversed(range(to_go.shape[1])):
            if t + 1 < to_go.shape[1]:
                reward = to_go[:, t] - to_go[:, t + 1]
                target[:, t] = reward + self.config.discount * target[:, t + 1]
            target[:, t] = torch.where(last == t, later, target[:, t])
        steps = torch.arange(to_go.shape[1])
        known = (steps < last[:, None]) | ((steps == last[:, None]) & ended[:, None])
        return target, known.float()


def main() -> None:
    parser = questions(__doc__ or "")
    parser.add_argument("--eta", type=float, default=1.0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = f"data.sources=[{','.join(sources(arguments))}]"
    config = load_run_config(arguments.body, [data, *arguments.settings])
    with joined(torch.device("cpu")) as (world, device), contextlib.ExitStack() as held:
        (run,) = open_runs([config], [arguments.out], device, False, [None], world, held)
        agent = run.learner.agent
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            beside = Beside(agent, config.values, arguments.eta)
        agent.guide = beside
        train_all([run], lambda _: [gradient_step(run.learner, run.training, config)])
    store = open_store(config.data.sources)
    critic = beside.critic.requires_grad_(False)
    ask(critic, store, agent.action_scale, arguments, has_v=False)


if __name__ == "__main__":
    main()

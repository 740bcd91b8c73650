"""Checkpoints that people can share: one folder of safetensors, config, rows, and a model card made
from them. Nothing in it can run code."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import textwrap
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decision_seq import __version__
from decision_seq.agents import save_agent
from decision_seq.agents.return_prior import FILE as PRIOR
from decision_seq.data.tools.info import read_summary
from decision_seq.digits import decimals
from decision_seq.errors import UserError
from decision_seq.eval.rows import Row, read_rows, target_label
from decision_seq.files import atomic_folder, write_text
from decision_seq.run_config import load_run_config, trained_agent, write_run_config
from decision_seq.run_folder import SHARED, SHARED_INDEX, Which, agent_hash, read_index


def save_pretrained(run: Path, out: Path, checkpoint: Which = "last", half: bool = False) -> None:
    """Make the folder `out` of a trained run: agent.safetensors, config.yaml, policy.json,
    dataset.json, the return prior, episodes.jsonl and README.md. It is a run folder of one
    checkpoint, which `evaluate`, `export` and `load_policy` take.

    Args:
        run: run folder.
        out: must not exist.
        checkpoint: the last, or the one with the lowest validation loss.
        half: matrices in float16, half the size; the rows of the unrounded ones are left out.

    Raises:
        UserError: `out` exists, there is no such run, or its config was edited after training.
    """
    if out.exists():
        raise UserError(f"{out}: exists; choose another folder, or remove it")
    step = read_index(run)[checkpoint]["step"]
    config = load_run_config(run / "config.yaml")
    agent = trained_agent(run, config, step)
    data = read_summary(run / "dataset.json")
    if half:
        for parameter in agent.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.half()
    # names of files say nothing elsewhere, and may say what is nobody's business
    sources = tuple(Path(s).name if Path(s).is_absolute() else s for s in config.data.sources)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    with atomic_folder(out) as folder:
        save_agent(agent, folder / SHARED)
        write_run_config(config, folder / "config.yaml")
        for name in ("dataset.json", PRIOR):
            if (run / name).is_file():
                shutil.copyfile(run / name, folder / name)
        described = {
            "format": "decision-seq shared 1",
            "step": step,
            "checkpoint": checkpoint,
            "agent": config.name,
            "backbone": config.agent.backbone.kind,
            "env": config.env,
            "data": {"name": data["name"], "hash": data["hash"]},
            "parameters": sum(p.numel() for p in agent.parameters()),
            "versions": {"decision_seq": __version__, "torch": torch.__version__},
        }
        write_text(folder / SHARED_INDEX, json.dumps(described, indent=2) + "\n")
        own = agent_hash(folder, step)
        kept = [row for row in read_rows(run) if row["agent_hash"] == own]
        lean = [row | {"ood": None, "run": out.name} for row in kept if row["step"] == step]
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in lean]
        write_text(folder / "episodes.jsonl", "".join(lines))
        write_card(folder, out.name)


def push(run: Path, repository: str, checkpoint: Which = "last", private: bool = False) -> str:
    """Upload a run as `save_pretrained` makes it, or such a folder as it is, to the Hugging Face
    hub. Returns the address.

    Raises:
        UserError: huggingface_hub is missing, or the hub refused.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(
            "the hub needs huggingface_hub; install it with pip install 'decision-seq[hub]'"
        ) from None
    with tempfile.TemporaryDirectory() as place:
        folder = run
        if not (run / SHARED).is_file():
            folder = Path(place) / repository.rpartition("/")[2]
            save_pretrained(run, folder, checkpoint)
        api = HfApi()
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder)
        except Exception as error:  # the library's, its network's and the hub's own
            said = " ".join(str(error).split())
            raise UserError(f"{repository}: the hub did not take it ({said:.200})") from None
    return f"hf://{repository}"


def write_card(folder: Path, name: str, note: str = "") -> None:
    """README.md of a shared folder, from what lies in it, and a note on its data and scores."""
    about = json.loads((folder / SHARED_INDEX).read_text("utf-8"))
    data = read_summary(folder / "dataset.json")
    scores, digits = score_lines(read_rows(folder)), decimals(data["returns"])
    card = CARD.format(
        name=name,
        env=about["env"],
        agent=about["agent"],
        backbone=about["backbone"],
        parameters=about["parameters"],
        step=about["step"],
        checkpoint={"last": "the last", "validation": "that of the lowest validation loss"}[
            about["checkpoint"]
        ],
        data=about["data"]["name"],
        hash=about["data"]["hash"],
        episodes=data["episodes"],
        steps=data["steps"],
        data_mean=f"{data['return_mean']:.{digits}f}",
        data_max=f"{data['return_max']:.{digits}f}",
        scores="\n".join(scores) or "It has not been evaluated.",
        note=f"\n{textwrap.fill(note, 100)}\n" if note else "",
        version=about["versions"]["decision_seq"],
    )
    write_text(folder / "README.md", card)


def score_lines(rows: list[Row]) -> list[str]:
    """A table of mean returns over episodes with 95 % intervals, a line a context and target."""
    lines = ["| context | target | episodes | return | 95 % interval | normalized score |"]
    lines.append("|---|---|---|---|---|---|")
    digits = decimals(row["episode_return"] for row in rows)

    def key(row: Mapping[str, Any]) -> tuple[str, str]:
        return row["context"], target_label(dict(row))

    for (context, target), group in groupby(sorted(rows, key=key), key=key):
        part = list(group)
        returns = np.array([row["episode_return"] for row in part])
        draws = np.random.default_rng(0).choice(returns, (2000, len(returns))).mean(axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        scores = [row["normalized_score"] for row in part]
        score = "-" if None in scores else f"{np.mean(scores):.1f}"
        mean, low, high = (f"{value:.{digits}f}" for value in (returns.mean(), low, high))
        lines.append(f"| {context} | {target} | {len(part)} | {mean} | {low} to {high} | {score} |")
    return lines if rows else []


CARD = """---
library_name: decision-seq
tags: [reinforcement-learning, offline-rl, decision-transformer, {backbone}]
---

# {name}

{agent} (backbone {backbone}, {parameters} parameters) for `{env}`, trained by decision-seq
{version} on {data} (hash {hash}): {episodes} episodes, {steps} steps, mean return
{data_mean}, best {data_max}. Of one training seed; of step {step}, {checkpoint}
checkpoint, not chosen by scores.
{note}
## Scores

{scores}

Intervals are over episodes (bootstrap of the mean), not over training seeds: another seed may do
better or worse. Every row is in `episodes.jsonl`, with environment seeds, versions and hardware.

## Use

```python
from decision_seq.policy import load_policy

policy = load_policy("{name}", context="stream", target_return=...)
action = policy.act(observation, reward)
```

## Limits

It imitates its data and has been tried in the simulator named above alone, from that simulator's
own starts; it has no notion of safety. Targets above the data's best return ask for what it has
never seen.

## Cite

decision-seq {version}; Decision Transformer (arXiv:2106.01345), Decision Mamba
(arXiv:2403.19925).
"""

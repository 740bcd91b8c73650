"""The command line: one command, one function; its signature is its interface."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

import decision_seq
from decision_seq.cli import data as cli_data
from decision_seq.errors import UserError
from decision_seq.hardware import keep_freed_memory

if TYPE_CHECKING:  # imported where used: `--help` must not wait for torch
    import torch

    from decision_seq.agents import SequenceAgent
    from decision_seq.run_config import RunConfig

Assignments = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(name="set", metavar="KEY=VALUE", help="override a config key; may be repeated"),
]
Device = Annotated[str, arg(help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one")]


def quickstart(out: Path = Path("quickstart"), seed: int = 0) -> None:
    """Collect Hopper data, train a Decision Mamba and a Decision Transformer, write a report.

    Args:
        out: folder for everything it makes.
        seed: of data, training and evaluation.
    """
    from decision_seq.cli.quickstart import run

    run(out, seed)


def collect(
    env: Positional[str],
    tier: Positional[str],
    steps: int = 100_000,
    policy: Path | None = None,
    out: str | None = None,
    seed: int = 0,
    trust_policy: FlagCreatePairsOff[bool] = False,
) -> None:
    """Roll a behaviour policy out and store the episodes as a Minari dataset.

    Args:
        env: environment name (see `list envs`) or gymnasium id.
        tier: which embedded policy (see `list tiers`); with --policy, what to call the data.
        steps: fewest environment steps; the last episode is completed.
        policy: Stable-Baselines3 or sb3-contrib .zip to roll out instead; VecNormalize statistics
            are read from NAME.vecnormalize.pkl or vecnormalize.pkl beside it.
        out: Minari dataset id; by default decision-seq/ENV/TIER-v0.
        seed: of environment and policy.
        trust_policy: let Stable-Baselines3 load a --policy of a kind that is not read here; it runs
            code that the file may hold.
    """
    from decision_seq.behaviours.tiers import behaviour_for
    from decision_seq.data.tools.collect import check_id, collect
    from decision_seq.progress import progress_bar

    dataset_id = out or f"decision-seq/{env.lower().replace('/', '-')}/{tier}-v0"
    check_id(dataset_id)
    behaviour, provenance = behaviour_for(env, tier, policy, trust_policy)
    with progress_bar() as bar:
        task = bar.add_task("collecting", total=steps, note="")
        summary = collect(
            env,
            behaviour,
            steps,
            dataset_id,
            seed,
            provenance,
            lambda done: bar.update(task, completed=done),
        )
    print(
        f"{dataset_id}: {summary['episodes']} episodes, {summary['steps']} steps, "
        f"return {summary['return_mean']:.1f} ± {summary['return_std']:.1f}"
    )


def train(
    config: Positional[Path],
    out: Path,
    assignments: Assignments = (),
    resume: FlagCreatePairsOff[bool] = False,
    device: Device = "auto",
) -> None:
    """Train an agent. Ctrl-C saves and stops; --resume goes on from there.

    Args:
        config: YAML file, e.g. configs/hopper-decision-mamba.yaml.
        out: run folder to make.
        resume: continue the run in `out`, if there is one.
    """
    from decision_seq.run_config import load_run_config
    from decision_seq.train.distributed import is_rank_zero
    from decision_seq.train.loop import train

    run = load_run_config(config, assignments)
    finished = train(run, out, _device(device), resume, _rollouts_on_the_way(run, out))
    if is_rank_zero() and finished:
        print(f"{out}: trained; next: decision-seq evaluate {out}")
    elif is_rank_zero():
        print(f"{out}: stopped and saved; the same command with --resume goes on")
    if not finished:
        sys.exit(130)


def evaluate(
    run: Positional[Path],
    targets: tuple[float, ...] | Literal["auto"] | None = None,
    target_quantile: float | None = None,
    episodes: int | None = None,
    context: Literal["window", "stream"] | None = None,
    checkpoint: Literal["last", "validation", "best"] = "last",
    env: str | None = None,
    seed: int | None = None,
    video: tuple[Literal["median", "best", "worst"], ...] | None = None,
    device: Device = "auto",
) -> None:
    """Roll a trained agent out and keep one row an episode in the run folder.

    What is left out is taken from the run's config.

    Args:
        run: run folder.
        targets: returns to ask for, in the environment's units; or auto: each episode is asked for
            what the data make probable from its first observation.
        target_quantile: of the data's returns from there, for auto.
        episodes: episodes a target.
        context: window recomputes the last K steps (as the papers do); stream carries state.
        checkpoint: the last; the one with the lowest validation loss; or the best of all that were
            kept, chosen by rollouts of their own and reported next to the last.
        env: another environment or version.
        seed: of the first episode's environment.
        video: film each target's median, best and worst episode, or those named, to RUN/videos.
    """
    from decision_seq.agents import load_agent
    from decision_seq.eval.rollout.protocol import (
        evaluate_agent,
        evaluate_best,
        evaluation_config,
        mean_scores,
        summary_table,
    )
    from decision_seq.progress import progress_bar
    from decision_seq.train.checkpoint import agent_at, read_index, saved_steps
    from decision_seq.train.log import log_result

    index, on = read_index(run), _device(device)
    config = evaluation_config(run, targets, episodes, context, env, seed, target_quantile)
    actions: list[Any] | None = None
    if video is not None:
        from decision_seq.eval.rollout.video import PICKS, check_video, write_videos

        os.environ |= check_video(config.env)
        actions = []
    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=None, note="finished episodes")

        def on_step(done: int, lanes: int) -> None:
            bar.update(task, completed=done, total=lanes)

        if checkpoint == "best":
            files = {step: agent_at(run, step) for step in saved_steps(run)}
            last, rows = evaluate_best(run, files, config, on, on_step, actions)
        else:
            step = index[checkpoint]["step"]
            agent = load_agent(agent_at(run, step), on)
            rows = evaluate_agent(agent, config, run, step, checkpoint, on_step, actions)
    if checkpoint == "best":
        summary_table(last)
    summary_table(rows)
    log_result(run, config, rows[0]["step"], mean_scores(rows))
    if actions is not None:
        with progress_bar() as bar:
            task = bar.add_task("filming", total=None, note="frames")
            written = write_videos(
                run,
                rows,
                actions,
                video or PICKS,
                lambda done, frames: bar.update(task, completed=done, total=frames),
            )
        print(f"videos: {', '.join(map(str, written))}")


def inspect(
    run: Positional[Path],
    checkpoint: Literal["last", "validation"] = "last",
    episode: int = 0,
    step: int | None = None,
    context_length: int | None = None,
    out: Path | None = None,
    assignments: Assignments = (),
    device: Device = "auto",
) -> None:
    """Write what an agent looks back at: influence of the past by lag, token maps, memory.

    Args:
        run: run folder, or a config file to inspect the agent as it is before training.
        checkpoint: the last one, or the one with the lowest validation loss.
        episode: which of the dataset's episodes the token maps show.
        step: last step of the window shown; by default that of the first full window.
        context_length: steps a window, which may be more than in training; by default the same.
        out: folder for inspect.json and the figures; by default the run folder.
    """
    from decision_seq.eval.inspect.numbers import print_tables
    from decision_seq.eval.inspect.run import (
        inspect_agent,
        load_trained,
        load_untrained,
        to_json,
        write_inspection,
    )
    from decision_seq.train.checkpoint import agent_path, read_index

    if run.is_file():
        if out is None:
            raise UserError(f"{run}: is a config file; name a folder for the figures with --out")
        subject = load_untrained(run, assignments, _device(device))
    else:
        step_trained, file = read_index(run)[checkpoint]["step"], agent_path(run, checkpoint)
        subject = load_trained(run, file, step_trained, checkpoint, assignments, _device(device))
    inspection = inspect_agent(subject, episode, step, context_length)
    files = write_inspection(inspection, out or run)
    print_tables(to_json(inspection))
    print(f"written: {', '.join(map(str, files))}")


def compare(
    config: Positional[Path],
    out: Path,
    assignments: Assignments = (),
    runner: str = "local",
    jobs: int | None = None,
    gpus_per_cell: float | None = None,
) -> None:
    """Train and evaluate a matrix of agents x datasets x seeds and write a report.

    Finished runs are skipped, so the same command continues an interrupted comparison.

    Args:
        config: YAML file, e.g. configs/compare-hopper.yaml.
        out: folder for the runs and the report (report.html, .md, .csv, .json).
        runner: local (processes of this machine) or ray (the cluster of RAY_ADDRESS, or one here).
        jobs: runs at once; by default as many as cores, free memory and GPUs allow.
        gpus_per_cell: share of a GPU that a run takes, e.g. 0.25; by default one GPU, or its share
            of one where --jobs is larger than their number.
    """
    from decision_seq.eval.compare.matrix import load_matrix, run_matrix
    from decision_seq.eval.report.page import write_report

    matrix = load_matrix(config, out, assignments)
    runs, failed = run_matrix(matrix, print, runner, jobs, gpus_per_cell)
    if runs:
        write_report(runs, out / "report.html", failed)
        print(f"report: {out / 'report.html'}")
    if failed:
        raise UserError(f"{len(failed)} of {len(matrix)} runs failed: {', '.join(failed)}")


def report(runs: Positional[tuple[Path, ...]], out: Path = Path("report.html")) -> None:
    """Write a report from the rows of run folders: a self-contained page, Markdown, CSV and JSON.

    Args:
        runs: run folders, or folders that hold some.
        out: file to write; .html with .md, .csv and .json beside it, or one of these alone.
    """
    from decision_seq.eval.report.page import write_report
    from decision_seq.eval.report.runs import find_runs

    files = write_report(find_runs(runs), out)
    print(f"report: {', '.join(map(str, files))}")


def list_(
    what: Positional[Literal["backbones", "encoders", "agents", "envs", "tiers", "kernels"]],
) -> None:
    """Print what there is to choose from.

    Args:
        what: backbones, encoders (of frames), agents, envs, tiers (behaviour policies) or kernels.
    """
    from decision_seq.cli.listing import LISTINGS

    for line in LISTINGS[what]():
        print(line)


COMMANDS: dict[str, Callable[..., Any]] = {
    "quickstart": quickstart,
    "collect": collect,
    "data": cli_data.data,
    "train": train,
    "evaluate": evaluate,
    "inspect": inspect,
    "compare": compare,
    "report": report,
    "list": list_,
}


def main() -> None:
    """Entry point. Bad input: one sentence on stderr and exit code 2."""
    keep_freed_memory()
    try:
        try:
            _run_command()
        finally:
            sys.stdout.flush()  # here, where a closed pipe is met below
    except UserError as error:
        print(f"decision-seq: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        amount = re.search(r"to allocate ([\d.]+ \w+)", str(error))
        asked = f" ({amount[1]} were asked for at once)" if amount else ""
        print(
            f"decision-seq: out of memory{asked}; lower train.batch_size, agent.backbone.width or "
            "agent.context_length, or the episodes of an evaluation, or use a machine with more",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("decision-seq: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` say, has seen enough: no fault of ours or theirs
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor of the flush at exit
        sys.exit(141)  # as a program that SIGPIPE ended


def _run_command() -> None:
    if sys.argv[1:2] == ["data"]:  # has commands of its own
        cli_data.main(sys.argv[2:])
    else:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="decision-seq", description=decision_seq.__doc__
        )


def _out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: Python's or NumPy's, torch's on a GPU, or torch's on a CPU,
    which is a plain RuntimeError. Without torch loaded the error is not torch's."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and (
        isinstance(error, torch.OutOfMemoryError)
        or "DefaultCPUAllocator" in str(error)
        or "not enough memory" in str(error)
    )


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: is not available here; use auto or cpu") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: is not supported; use auto, cpu, cuda or cuda:N")
    return device


def _rollouts_on_the_way(config: RunConfig, out: Path) -> Any:
    """What `eval.interval` asks for: rollouts during training, counted as online evaluations."""
    from decision_seq.eval.rollout.protocol import evaluate_agent

    def roll(agent: SequenceAgent, step: int) -> dict[str, float]:
        rows = evaluate_agent(agent, config, out, step, "interval")
        returns = [row["episode_return"] for row in rows]
        return {"return_mean": sum(returns) / len(returns)}

    return roll


if __name__ == "__main__":
    main()

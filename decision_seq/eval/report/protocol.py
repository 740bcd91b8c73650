"""How the numbers of a report came about, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from decision_seq.envs.identity import Identity
from decision_seq.envs.registry import NAMES
from decision_seq.eval.compare.ledger import read_ledger
from decision_seq.eval.report.runs import Run, checkpoints
from decision_seq.eval.report.tables import hardware_of, newest
from decision_seq.eval.rows import Row, target_label
from decision_seq.spans import spans, successive

CHOSEN = ("validation", "best")  # checkpoints beside the last
# what an evaluation can be asked for, beside targets and seeds
PLANNED = ("checkpoint", "env", "simulator", "context", "target_quantile", "max_steps")


def protocol(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Data, environments, targets, checkpoints, seeds and machines behind the numbers, by name."""
    pairs = [(run, row) for run in runs for row in run.rows]
    rows = [row for _, row in pairs]
    chosen = [(run, row) for run in runs for kind in CHOSEN for row in newest(run.others, kind)]
    left_out = [(run, r) for run in runs for r in run.others if r["checkpoint"] == "last"]

    def every(values: Iterable[Any]) -> str:
        return "; ".join(sorted({str(v) for v in values}))

    data = {f"{r.dataset['name']} ({r.dataset['hash']})": None for r in runs}
    lines = [
        ("datasets (hash of the episodes)", "; ".join(data)),
        ("environments", every(row["env"] for row in rows)),
        ("targets", every(map(_who_chose, rows))),
        ("checkpoint", checkpoints(pairs)),
    ]
    if left_out:
        lines.append(("rows of earlier checkpoints, left out", checkpoints(left_out)))
    if chosen:
        how = every(_how_chosen(run, row) for run, row in chosen)
        lines.append(("chosen checkpoints, beside the last", how))
    lines += [
        ("context", every(map(_context, rows))),
        ("training seeds", spans(run.config.seed for run in runs)),
        ("environment seeds", _environment_seeds(runs)),
        ("episodes a target and seed", every(_episodes(runs))),
    ]
    if any(row["normalized_score"] is not None for row in rows):
        named = [r["score_reference"] or "not named in the rows" for r in rows
                 if r["normalized_score"] is not None]  # fmt: skip
        lines.append(("references of normalized scores", every(named)))
    return [
        *lines,
        ("batch size", every(run.config.train.batch_size for run in runs)),
        ("learning rate", every(run.config.train.learning_rate for run in runs)),
        ("versions", every(", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in rows)),
        ("hardware of the rollouts", every(map(hardware_of, rows))),
    ]


def commands(runs: Sequence[Run]) -> list[str]:
    """Commands that make each run again: as a comparison's ledger has it, else from its folder."""
    lines: list[str] = []
    for run in runs:
        ledger = read_ledger(run.folder.parent.parent)
        started = [e for e in ledger if e["cell"] == run.folder.name and "commands" in e]
        if started:
            own = [str(command) for command in started[-1]["commands"]]
            again = shlex.split(own[-1])[2]
        else:
            again = f"NEW/{run.folder.name}"
            own = [shlex.join(_training(run, again))]
        # a comparison's commands may name the context that is the config's own
        context = {"--context", run.config.eval.context}
        known = {frozenset(shlex.split(c)) - context for c in own}
        more = dict.fromkeys(_evaluations(run, again))
        lines += [*own, *(c for c in more if frozenset(shlex.split(c)) - context not in known)]
    return lines


def _training(run: Run, folder: str) -> list[str]:
    """The command that trains the run as far as the reported checkpoint."""
    words = ["decision-seq", "train", str(run.folder / "config.yaml"), "--out", folder]
    step, settings = run.reported_step, run.config.train
    if step == settings.steps or settings.schedule != "constant":
        return words  # where the learning rate depends on the number of steps, it stays
    return [*words, "--set", f"train.steps={step}"]


def _evaluations(run: Run, folder: str) -> Iterator[str]:
    """The commands whose rows the report is made from: of each kind of rows, those targets that
    share their seeds together."""
    kinds: dict[tuple[Any, ...], dict[float | None, set[int]]] = {}
    for row in [*run.rows, *(row for kind in CHOSEN for row in newest(run.others, kind))]:
        kind = tuple(row[key] for key in PLANNED)
        target = None if row["target_rule"] == "auto" else row["target"]
        kinds.setdefault(kind, {}).setdefault(target, set()).add(row["env_seed"])
    for kind, by_target in kinds.items():
        shared: dict[frozenset[int], list[float]] = {}
        for target, own in by_target.items():
            shared.setdefault(frozenset(own), []).extend([] if target is None else [target])
        for seeds, targets in shared.items():
            for span in successive(seeds):
                words = _evaluation(run, dict(zip(PLANNED, kind, strict=True)), targets, span)
                yield shlex.join(["decision-seq", "evaluate", folder, *words])


def _canonical(env: str) -> str:
    typed = Identity.parse(env)  # its module is not imported for a report
    return str(Identity(NAMES.get(typed.id.lower(), typed.id), typed.arguments))


def _evaluation(run: Run, done: Row, targets: Sequence[float], seeds: range) -> list[str]:
    """The options of a command: what was `done`, where it differs from the run's config."""
    plan, quantile = run.config.eval, done["target_quantile"]
    planned_env = None if run.config.env is None else _canonical(run.config.env)
    options = [
        ("--checkpoint", done["checkpoint"], "last"),
        ("--env", done["env"].removesuffix(f" ({done['simulator']})"), planned_env),
        ("--simulator", done["simulator"], plan.simulator),
        ("--context", done["context"], plan.context),
        ("--episodes", len(seeds), plan.episodes),
        ("--seed", seeds.start, plan.seed),
        ("--max-steps", done["max_steps"], plan.max_steps),
    ]
    words = [str(w) for flag, found, planned in options if found != planned for w in (flag, found)]
    if quantile is not None and (plan.targets, plan.target_quantile) != ("auto", quantile):
        words += ["--targets", "auto", "--target-quantile", f"{quantile:g}"]
    elif targets and tuple(targets) != plan.targets:
        words += ["--targets", *(f"{target:.10g}" for target in targets)]
    return words


def _who_chose(row: Row) -> str:
    if row["target"] is None:
        return "none asked for"
    if row["target_rule"] == "given":
        return "named by hand"
    return (
        f"auto: quantile {row['target_quantile']:g} of the data's returns given an episode's first "
        "observation"
    )


def _how_chosen(run: Run, row: Row) -> str:
    count = row["candidates"] or "an unknown number of"
    return f"{run.checkpoint(row)}: {row['checkpoint_rule']}, out of {count} candidates"


def _context(row: Row) -> str:
    means = {
        "window": "the last K steps are recomputed at every step",
        "stream": "the state is carried over the whole episode",
    }.get(row["context"], "?")
    return f"{row['context']}, K = {row['context_length']}: {means}"


def _episodes(runs: Sequence[Run]) -> set[int]:
    counts = set()
    for run in runs:
        kinds = Counter((r["env"], r["context"], target_label(r)) for r in run.rows)
        counts |= set(kinds.values())
    return counts


def _environment_seeds(runs: Sequence[Run]) -> str:
    """Environment seeds in words: of everyone, or of each agent where they differ."""
    seeds: dict[tuple[str, str, str, str], set[int]] = {}
    for run in runs:
        for row in run.rows:
            kind = (run.agent, run.folder.name, target_label(row), row["context"])
            seeds.setdefault(kind, set()).add(row["env_seed"])
    words = {kind: spans(found) for kind, found in seeds.items()}
    if len(set(words.values())) == 1:
        return f"{next(iter(words.values()))}, the same for every agent and target"
    of_agent: dict[str, set[str]] = {}
    for (agent, *_), found in words.items():
        of_agent.setdefault(agent, set()).add(found)
    parts = [
        f"{agent}: {found}"
        if len(of_agent[agent]) == 1
        else f"{agent} ({folder}, target {target}, {context}): {found}"
        for (agent, folder, target, context), found in sorted(words.items())
    ]
    return "; ".join(dict.fromkeys(parts)) + "; compared are those that two agents have in common"

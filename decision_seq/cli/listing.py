"""`decision-seq list`: a line for each thing there is to choose from."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows as columns, as wide as their longest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def backbones() -> Iterator[str]:
    """Parameters at the default width, and each one's cost and way to stream."""
    from decision_seq.backbones import BackboneConfig, Layout

    rows = []
    for kind, config in sorted(BackboneConfig.registry.items()):
        model = config().build(Layout(context_length=20, tokens_per_step=3))
        count = sum(p.numel() for p in model.parameters())
        rows.append((kind, f"{count / 1e6:5.2f} M parameters", config.summary))
    return _aligned(rows)


def encoders() -> Iterator[str]:
    """Encoders of Atari's frames, with their parameters and features."""
    from decision_seq.model.encoders import ImageEncoderConfig

    rows = []
    for kind, config in sorted(ImageEncoderConfig.registry.items()):
        model = config().build((4, 84, 84))
        count = sum(p.numel() for p in model.parameters())
        size = f"{count / 1e6:5.2f} M parameters {model.features:5} features"
        rows.append((kind, size, config.summary))
    return _aligned(rows)


def agents() -> Iterator[str]:
    """Kinds, then presets."""
    from decision_seq.agents import PRESETS, AgentConfig

    rows = [(kind, config.summary) for kind, config in sorted(AgentConfig.registry.items())]
    for preset, fields in PRESETS.items():
        parts = {key: value for key, value in fields.items() if isinstance(value, dict)}
        own = [f"{key} {_plain(value)}".rstrip() for key, value in parts.items()]
        rows.append((preset, f"preset: {fields['kind']} with {', '.join(own)}"))
    return _aligned(rows)


def _plain(fields: dict[str, Any]) -> str:
    """mamba init=published"""
    kind = [fields["kind"]] if "kind" in fields else []
    return " ".join([*kind, *(f"{k}={v}" for k, v in fields.items() if k != "kind")])


def envs() -> Iterator[str]:
    """Short names and MuJoCo ids, with the references of normalized scores."""
    from decision_seq.envs.atari import GAMES
    from decision_seq.envs.reference_scores import reference_returns
    from decision_seq.envs.registry import ATARI_IDS, MUJOCO_IDS, NAMES

    names = {identifier: name for name, identifier in NAMES.items()}
    others = [i for i in NAMES.values() if i not in ATARI_IDS.values()]
    rows = []
    for identifier in dict.fromkeys([*MUJOCO_IDS, *others]):
        reference = reference_returns(identifier)
        scores = f"normalized 0..100 = {reference[0]:g}..{reference[1]:g}" if reference else ""
        rows.append((names.get(identifier, ""), identifier, scores))
    yield from _aligned(rows)
    games = ", ".join(name for name in ATARI_IDS if not name.endswith("-sticky"))
    yield from textwrap.wrap(
        f"{len(GAMES)} Atari games, each with -sticky added for sticky actions (pong is "
        "Atari/Pong-nosticky-v0, pong-sticky Atari/Pong-sticky-v0), normalized 0..100 = "
        f"random..human: {games}",
        width=100,
        subsequent_indent=" " * 13,
        break_on_hyphens=False,
    )
    yield from textwrap.wrap(
        "Any other registered gymnasium id works as well: package:Id-v0 imports the package that "
        "registers it, and Id-v0?argument=value makes it with arguments.",
        width=100,
    )


def tiers() -> Iterator[str]:
    """Behaviour policies that `collect` knows without a --policy."""
    from decision_seq.behaviours.actors import embedded_tiers
    from decision_seq.behaviours.tiers import FAMILIES, GAMES, TOYS, UNIFORM
    from decision_seq.envs.registry import NAMES, typed

    names = {identifier: name for name, identifier in NAMES.items()}
    rows = []
    for env, tier, metadata in embedded_tiers():
        score = f"normalized score {float(metadata['normalized_score']):.1f}"
        rows.append((env, tier, f"{score}  ({metadata['algorithm']})"))
    for (identifier, tier), (_, summary) in {**TOYS, **GAMES}.items():
        named = names.get(identifier, f"popgym:{identifier}")  # whose module must be named
        rows.append((named, tier, summary))
    rows += [(f"{typed(start)}*", tier, does) for start, tier, _, does in FAMILIES]
    rows.append(("(any)", UNIFORM, "uniform from the action space"))
    return _aligned(rows)


def kernels() -> Iterator[str]:
    """Which selective scan will run, and why not the others."""
    from decision_seq.ops import scan_backends

    for backend in scan_backends():
        mark = "*" if backend.chosen else " "
        yield f"{mark} {backend.name:12} {backend.reason}"


def zoo() -> Iterator[str]:
    """Trained agents in the folder zoo/ here or shipped with the package, with their scores."""
    import json

    from decision_seq.eval.rows import read_rows, target_label
    from decision_seq.run_folder import SHARED_INDEX
    from decision_seq.shipped import shipped

    places = [Path("zoo"), shipped("zoo")]
    found = [path for place in places for path in sorted(place.glob(f"*/{SHARED_INDEX}"))]
    rows = []
    for path in dict.fromkeys(file.resolve() for file in found):
        about, scores = json.loads(path.read_text(encoding="utf-8")), defaultdict(list)
        for row in read_rows(path.parent):
            scores[row["context"], target_label(row)].append(row["normalized_score"])
        said = [
            f"{context} {target}: {sum(all_) / len(all_):.1f}"
            for (context, target), all_ in sorted(scores.items())
            if None not in all_
        ]
        rows.append((path.parent.name, about["env"], ", ".join(said) or "not evaluated"))
    return _aligned(rows)


def configs() -> Iterator[str]:
    """Configs that are shipped, by the names that commands take."""
    from decision_seq.shipped import config_summaries

    return _aligned(list(config_summaries().items()))


LISTINGS: dict[str, Callable[[], Iterator[str]]] = {
    "backbones": backbones,
    "encoders": encoders,
    "agents": agents,
    "envs": envs,
    "tiers": tiers,
    "kernels": kernels,
    "zoo": zoo,
    "configs": configs,
}
What = Literal["backbones", "encoders", "agents", "envs", "tiers", "kernels", "zoo", "configs"]


def list_(what: Positional[What]) -> None:
    """Print what there is to choose from.

    Args:
        what: backbones, encoders (of frames), agents, envs, tiers (behaviour policies), kernels,
            zoo (trained agents, with their normalized scores) or configs (`config NAME` shows one).
    """
    for line in LISTINGS[what]():
        print(line)

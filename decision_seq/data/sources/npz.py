"""`.npz` files: observations, actions, rewards, terminations, truncations, one row a step.

The last two may be called `terminals` and `timeouts`. Optional: `meta`, a JSON text (of which
env_id, eval_env_id, ref_min, ref_max, action_count, action_start, rewards and the findings of an
export are used); `episode_seeds`, what each episode's environment was reset with;
`incomplete_episodes` (once called `unended_episodes`), numbers of those whose truncation was not
recorded but assumed. Other keys are ignored.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.findings import Finding, from_plain
from decision_seq.data.sources.episode_list import HAND_OVER
from decision_seq.errors import UserError
from decision_seq.spaces.table import from_json, to_json

KEYS = ("observations", "actions", "rewards", "terminations", "truncations")
META = {"env_id": "env_id", "ref_min": "ref_min_score", "ref_max": "ref_max_score"}
META |= {"eval_env_id": "eval_env_id", "rewards": "rewards"}  # theirs: ours
META |= {"action_count": "action_count", "action_start": "action_start"}
TABLES = ("observation_space", "action_space")  # as spaces.Table writes them
EPISODE_KEYS = ("episode_seeds", "incomplete_episodes")
# theirs: ours. The first two as in D4RL's files; the last is our own old name
ALIASES = {"terminals": "terminations", "timeouts": "truncations"}
ALIASES |= {"unended_episodes": "incomplete_episodes"}
HINTS = {
    "rewards": "where none were recorded, write zeros, and train an agent that imitates",
    "terminations": "1 where the environment ended an episode (as `terminals`, not `dones`)",
    "truncations": "1 where a time limit or the recording ended one, or zeros if nothing did",
}


def read(path: Path) -> Episodes:
    """Read one file. Raises UserError for a broken file or a missing key. Pickles are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            theirs = {ALIASES.get(key, key): key for key in file.files} | {k: k for k in file.files}
            if missing := [key for key in KEYS if key not in theirs]:
                hint = HINTS.get(missing[0], f"or {HAND_OVER}")
                raise UserError(
                    f"{path}: key `{missing[0]}` is missing (found {', '.join(file.files)[:200]}); "
                    f"a dataset needs {', '.join(KEYS)}: {hint}"
                )
            arrays = (file[theirs[key]] for key in KEYS)
            observations, actions, rewards, terminated, truncated = arrays
            meta = str(file["meta"]) if "meta" in file.files else "{}"
            seeds, incomplete = (
                file[theirs[key]] if key in theirs else np.empty(0, int) for key in EPISODE_KEYS
            )
    except (
        OSError,
        ValueError,
        EOFError,
        AttributeError,
        KeyError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split())
        if "allow_pickle" in reason:  # numpy advises to run whatever code a stranger's file holds
            reason = "Python objects are not read; write arrays of numbers with numpy.savez"
        raise UserError(
            f"{path}: cannot be read as .npz ({reason}); the file may be cut off or not be a numpy "
            "archive"
        ) from None
    info, findings = _info(path, meta)
    flat = from_flat(str(path), observations, actions, rewards, terminated, truncated, info)
    episodes = len(flat.lengths)
    seeds, incomplete = (
        _numbers(path, k, a) for k, a in zip(EPISODE_KEYS, (seeds, incomplete), strict=True)
    )
    if len(seeds) not in (0, episodes):
        raise UserError(
            f"{path}: `episode_seeds` has {len(seeds)} numbers for {episodes} episodes; give one "
            "each, or leave the key out"
        )
    if max(incomplete, default=0) >= episodes:
        raise UserError(
            f"{path}: `incomplete_episodes` names episode {max(incomplete)} of {episodes}; they "
            "are counted from 0"
        )
    return replace(
        flat,
        incomplete=(*sorted({*flat.incomplete, *incomplete}),),
        seeds=(*seeds,),
        findings=(*flat.findings, *findings),
    )


def _numbers(path: Path, key: str, array: np.ndarray) -> list[int]:
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array < 0).any():
        raise UserError(
            f"{path}: `{key}` is {array.dtype} of shape {array.shape}; it must be whole numbers "
            "[episodes], none below 0"
        )
    return [int(number) for number in array]


def _info(path: Path, meta: str) -> tuple[dict[str, Any], list[Finding]]:
    try:
        data = json.loads(meta)
        findings = [from_plain(fields) for fields in data.get("findings", ())]
        info = {ours: data[theirs] for theirs, ours in META.items() if theirs in data}
        texts = dict.fromkeys(("env_id", "eval_env_id", "rewards"), str)
        for key, kind in {**texts, "action_count": int, "action_start": int}.items():
            if key in info and type(info[key]) is not kind:
                raise TypeError
        scores = ("ref_min_score", "ref_max_score")
        info |= {key: float(info[key]) for key in scores if key in info}
        return info | {
            key: to_json(from_json(data[key], key)) for key in TABLES if key in data
        }, findings
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path}: `meta` is not a JSON object with texts `env_id`, `rewards` and numbers "
            "`ref_min`, `ref_max`, `action_count`, `action_start`; write it with json.dumps"
        ) from None

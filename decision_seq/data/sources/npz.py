"""`.npz` files: observations, actions, rewards, terminations, truncations, one row a step.

They may have other names, and some may be missing (see keys.py). Optional: `meta`, a JSON text (of
which env_id, eval_env_id, ref_min, ref_max, action_count, action_start, rewards, tables of spaces
and the findings of an export are used); `episode_seeds`, what each episode's environment was reset
with; `final_observations`, what was seen after each episode's last step;
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

from decision_seq.data.episodes import Episodes
from decision_seq.data.finals import FINALS
from decision_seq.data.findings import Finding, from_plain
from decision_seq.data.frames import NpyRows, array_on_disk, release
from decision_seq.data.sources import ogbench
from decision_seq.data.sources.keys import check_keys, from_keys, names_in
from decision_seq.errors import UserError
from decision_seq.spaces.table import from_json, to_json

META = {"env_id": "env_id", "ref_min": "ref_min_score", "ref_max": "ref_max_score"}
META |= {"eval_env_id": "eval_env_id", "rewards": "rewards"}  # theirs: ours
META |= {"action_count": "action_count", "action_start": "action_start"}
TABLES = ("observation_space", "action_space")  # as spaces.Table writes them
EPISODE_KEYS = ("episode_seeds", "incomplete_episodes")
FORMER = {"incomplete_episodes": "unended_episodes"}  # our own old name


def read(path: Path) -> Episodes:
    """Read one file. Raises UserError for a broken file or a missing key. Pickles are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            check_keys(str(path), file.files)
            names = [*names_in(set(file.files)).values()]
            arrays = {name: _array(file, name) for name in names}
            meta = str(file["meta"]) if "meta" in file.files else "{}"
            finals = _array(file, FINALS) if FINALS in file.files else None
            none = np.empty(0, int)
            seeds, incomplete = (
                next((file[k] for k in (key, FORMER.get(key, key)) if k in file.files), none)
                for key in EPISODE_KEYS
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
    if "rewards" not in arrays and "env_id" not in info:
        info |= ogbench.environment(path)
    flat = from_keys(str(path), arrays, info, finals)
    seen = arrays[names_in(arrays)["observations"]]
    episodes = len(flat.lengths)
    seeds, incomplete = (
        _numbers(path, k, a) for k, a in zip(EPISODE_KEYS, (seeds, incomplete), strict=True)
    )
    if len(seeds) not in (0, episodes):
        raise UserError(
            f"{path}: `episode_seeds` has {len(seeds)} numbers for {episodes} episodes; give one "
            "each, or leave the key out"
        )
    if finals is not None and finals.shape != (episodes, *seen.shape[1:]):
        raise UserError(
            f"{path}: `{FINALS}` is of shape {finals.shape}; expected one of the observations for "
            f"each of {episodes} episodes, or leave the key out"
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


def _array(file: Any, name: str) -> np.ndarray:
    """An array of an open file; images go to disk piece by piece, since they may not fit into
    memory."""
    member = f"{name}.npy"
    if member not in file.zip.namelist():
        return np.asarray(file[name])
    with file.zip.open(member) as stream:
        npy = NpyRows(stream)
        if len(npy.shape) < 3 or not npy.shape[0] or npy.by_columns or npy.dtype.hasobject:
            return np.asarray(file[name])
        whole, row = array_on_disk(npy.shape, npy.dtype), 0
        for piece in npy.rows(0, len(whole)):
            whole[row : row + len(piece)] = piece
            row += len(piece)
            release(whole)
    return whole


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

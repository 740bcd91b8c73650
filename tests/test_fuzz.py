"""Damaged files and odd shapes: a clean sentence or a correct load, never anything else.

Valid files are mutated byte by byte (seeded) and read in a child process that may grow by 2 GB and
has 10 s a case. Whatever is not a result or a UserError of one line is a failure, and so is a
crash of the child: the case that caused it is named and the next child goes on after it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_episodes, write_npz
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import config_for

from decision_seq.agents import SequenceAgent, load_agent, save_agent
from decision_seq.data import store
from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.store import open_store
from decision_seq.data.transforms import ReturnSpec
from decision_seq.data.windows import WindowSampler
from decision_seq.errors import UserError
from decision_seq.eval.rows import read_rows
from decision_seq.run_config import load_run_config, write_run_config
from decision_seq.run_folder import read_index
from decision_seq.training.checkpoint import load_state

SECONDS, GIGABYTES = 10, 2

# ---- valid files ---------------------------------------------------------------------------------


def make_npz(path: Path) -> None:
    write_npz(path, random_episodes([4, 6, 5]))


def make_hdf5(path: Path) -> None:
    import h5py

    episodes = random_episodes([4, 6, 5])
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards"):
            file[name] = getattr(episodes, name)
        file["terminals"] = episodes.terminated
        file["timeouts"] = episodes.truncated
        file.create_dataset("infos/qpos", data=episodes.observations, compression="gzip")


def make_pkl(path: Path) -> None:
    episodes = random_episodes([4, 6])
    trajectories = []
    for start, stop in zip(episodes.offsets[:-1], episodes.offsets[1:], strict=True):
        names = ("observations", "actions", "rewards")
        part = {name: getattr(episodes, name)[start:stop] for name in names}
        part["next_observations"] = part["observations"]
        part["terminals"] = episodes.terminated[start:stop]
        trajectories.append(part)
    path.write_bytes(pickle.dumps(trajectories))


def make_csv(path: Path) -> None:
    lines = ["episode,step,observation_0,observation_1,action_0,reward,terminated,truncated"]
    for m in range(3):
        for t in range(4):
            lines.append(f"{m},{t},{0.5 * m},{t},{t / 4},{m - t},{int(t == 3)},0")
    path.write_text("\n".join(lines) + "\n")


def make_agent(path: Path) -> None:
    torch.manual_seed(0)
    data = path.with_name("data.npz")
    make_npz(data)
    config = config_for(data)
    save_agent(SequenceAgent.for_dataset(config.agent, open_store([str(data)])), path)


def make_yaml(path: Path) -> None:
    write_run_config(config_for(path.with_name("data.npz")), path)


def make_state(path: Path) -> None:
    state = {"step": 3, "agent": {"w": torch.ones(3, 4)}, "torch_rng": torch.get_rng_state()}
    torch.save(state, path)


def make_index(path: Path) -> None:
    entry = {"step": 3, "validation_loss": 0.5}
    path.write_text(json.dumps({"last": entry, "best": entry}))


def make_rows(path: Path) -> None:
    row = dict.fromkeys(sorted(__import__("decision_seq.eval.rows", fromlist=["x"]).FIELDS), 1)
    text = {"env": "e", "checkpoint": "last", "context": "window", "run": "r", "versions": {}}
    path.write_text("".join(json.dumps(row | text | {"env_seed": i}) + "\n" for i in range(3)))


def open_as_store(path: Path) -> None:
    store = open_store([str(path)])
    sampler = WindowSampler(store, np.arange(store.episodes), 3, ReturnSpec(), 0)
    sampler.batch(0, 4)


def state_of(path: Path) -> None:
    run = path.parent / "run"
    folder = run / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True, exist_ok=True)
    make_index(run / "checkpoints" / "index.json")
    os.replace(path, folder / "state.pt")
    load_state(run)


def index_of(path: Path) -> None:
    run = path.parent / "run"
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    os.replace(path, run / "checkpoints" / "index.json")
    read_index(run)


def rows_of(path: Path) -> None:
    run = path.parent / "run"
    run.mkdir(exist_ok=True)
    os.replace(path, run / "episodes.jsonl")
    read_rows(run)


FORMATS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "data.npz": (make_npz, open_as_store),
    "data.hdf5": (make_hdf5, open_as_store),
    "data.pkl": (make_pkl, open_as_store),
    "data.csv": (make_csv, open_as_store),
    "agent.safetensors": (make_agent, load_agent),
    "run.yaml": (make_yaml, load_run_config),
    "state.pt": (make_state, state_of),
    "index.json": (make_index, index_of),
    "episodes.jsonl": (make_rows, rows_of),
}

# ---- mutations -----------------------------------------------------------------------------------


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, bytes, numbers that mean sizes, pieces lost, doubled or moved."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) or 1)
        # headers are where damage is understood wrongly: half of the changes go to the ends
        if rng.random() < 0.5:
            at = rng.choice((at % 256, len(changed) - 1 - at % 256)) % (len(changed) or 1)
        length = rng.choice((1, 2, 8, 64))
        kind = rng.randrange(8)
        if kind == 0:
            changed[at : at + 1] = bytes([changed[at] ^ (1 << rng.randrange(8))] if changed else [])
        elif kind == 1:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            changed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x7f"))
        elif kind == 3:
            del changed[at:]
        elif kind == 4:
            del changed[at : at + length]
        elif kind == 5:
            changed[at:at] = changed[at : at + length]
        elif kind == 6:
            changed[at:at] = rng.choice((b"-", b"9" * 12, b"{", b"\n", b"nan", b"\xfe", b"1e400"))
        else:
            other = rng.randrange(len(changed) or 1)
            changed[at : at + length] = changed[other : other + length]
    return bytes(changed)


def outcomes(name: str, first: int, last: int, folder: str) -> None:
    """Read cases first..last-1 of a format; a line of JSON each to FOLDER/outcomes."""
    make, load = FORMATS[name]
    base = Path(folder)
    store.cache_dir = lambda: base / "cache"
    os.environ["MINARI_DATASETS_PATH"] = str(base / "minari")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.fsync = lambda _fd: None  # type: ignore[assignment]  # thousands of them, of no use here
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    make(base / name)
    data = (base / name).read_bytes()
    load(base / name)  # the file as it is can be read
    signal.signal(signal.SIGALRM, _too_slow)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = size + GIGABYTES * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with (base / "outcomes").open("a") as log:
        for case in range(first, last):
            (base / name).write_bytes(mutate(data, random.Random(f"{name} {case}")))
            log.write(json.dumps({"case": case, "outcome": "crash"}) + "\n")
            log.flush()
            outcome, message = one_case(load, base / name)
            log.write(json.dumps({"case": case, "outcome": outcome, "message": message}) + "\n")
            log.flush()


def one_case(load: Callable[[Path], Any], path: Path) -> tuple[str, str]:
    signal.alarm(SECONDS)
    try:
        load(path)
        return "loaded", ""
    except UserError as error:
        return ("refused" if str(error).isprintable() else "many lines"), str(error)
    except BaseException:
        return "raised", traceback.format_exc()
    finally:
        signal.alarm(0)


def _too_slow(_signal: int, _frame: Any) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


@pytest.mark.parametrize("cases", [25, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_damaged_files(name: str, cases: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["decision_seq.training.loop", "h5py", "hypothesis", "pytest"])
    results: dict[int, dict[str, Any]] = {}
    while len(results) < cases:
        process = context.Process(target=outcomes, args=(name, len(results), cases, str(tmp_path)))
        process.start()
        process.join(60 + SECONDS * cases)
        process.kill()
        lines = (tmp_path / "outcomes").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        before = len(results)
        results |= {row["case"]: row for row in rows}
        assert len(results) > before, f"the child did nothing (exit code {process.exitcode})"
    bad = [row for row in results.values() if row["outcome"] not in ("loaded", "refused")]
    kinds = [row["outcome"] for row in results.values()]
    assert not bad, f"{len(bad)} of {cases}; first: {json.dumps(bad[:3], indent=1)}"
    assert kinds.count("refused") >= cases // 10, "the mutations hardly damage anything"


# ---- shapes --------------------------------------------------------------------------------------


@st.composite
def datasets(draw: st.DrawFn) -> tuple[Episodes, np.ndarray]:
    """Episodes of any lengths, widths, types and ends, and their rewards in float64."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    width = draw(st.integers(1, 4))
    discrete = draw(st.booleans())
    image = draw(st.booleans())
    kind = draw(st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    steps = sum(lengths)
    shape = (steps, width, 2) if image else (steps, width)
    observations = rng.integers(0, 100, shape).astype(np.uint8 if image else kind)
    actions = rng.integers(0, 5, steps) if discrete else rng.standard_normal((steps, width))
    rewards = rng.standard_normal(steps).astype(draw(st.sampled_from([np.float32, np.float64])))
    terminated, truncated = np.zeros((2, steps), draw(st.sampled_from([bool, np.uint8, float])))
    ends = np.cumsum(lengths) - 1
    for end in ends[:-1] if draw(st.booleans()) else ends:  # the last end may be missing
        which = draw(st.sampled_from(["terminated", "truncated", "both"]))
        terminated[end] = which != "truncated"
        truncated[end] = which != "terminated"
    episodes = from_flat("any", observations, actions, rewards, terminated, truncated, {})
    assert list(episodes.lengths) == lengths
    return episodes, rewards


@settings(max_examples=60, deadline=None)
@given(data=datasets(), length=st.integers(1, 12), full=st.booleans())
def test_store_and_windows_of_any_episodes(
    data: tuple[Episodes, np.ndarray], length: int, full: bool, tmp_path_factory: Any
) -> None:
    """Every step reachable, no window across an end, return-to-go the naive sum, masks right."""
    episodes, rewards = data
    folder = tmp_path_factory.mktemp("any")
    file = write_npz(folder / "a.npz", episodes)
    store = open_store([str(file)])
    for name in ("observations", "actions", "rewards", "terminated", "truncated", "offsets"):
        assert np.array_equal(getattr(store, name), getattr(episodes, name))
    sampler = WindowSampler(
        store, np.arange(store.episodes), length, ReturnSpec(scale=1.0), 0, full=full
    )
    batch = sampler.windows(torch.arange(sampler.steps))
    starts = sampler._starts
    reached = np.zeros(store.steps, bool)
    for i, start in enumerate(starts):
        episode = int(np.searchsorted(store.offsets, start, side="right")) - 1
        stop = min(start + length, store.offsets[episode + 1])
        real = int(stop - start)
        assert batch.mask[i].tolist() == [True] * real + [False] * (length - real)
        reached[start:stop] = True
        for name in ("observations", "actions", "timesteps"):
            values = getattr(batch, name)[i].numpy()
            if store.frames and name == "observations":
                values = values[:real, -1]  # the newest of each stack; test_frames.py has the rest
            assert np.array_equal(values[:real], getattr(store, name)[start:stop])
            assert not values[real:].any()
        assert batch.timesteps[i, 0] == start - store.offsets[episode]
        for k in range(real):
            naive = rewards[start + k : store.offsets[episode + 1]].astype(np.float64).sum()
            assert batch.returns_to_go[i, k] == pytest.approx(naive, rel=1e-4, abs=1e-4)
    assert reached.all()
    places = sampler.places(0, 16)
    drawn = sampler.batch(0, 16)
    for i, (episode, step) in enumerate(places):
        row = store.offsets[episode] + step
        seen = drawn.observations[i, 0, -1] if store.frames else drawn.observations[i, 0]
        assert np.array_equal(seen.numpy(), store.observations[row])

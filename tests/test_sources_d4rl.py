"""D4RL's files: reference scores, and where the episodes of every family end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import random_episodes, write_npz
from source_files import assert_same, write_hdf5

from decision_seq.data.store import open_store
from decision_seq.data.tools.info import summarize
from decision_seq.envs.reference_scores import (
    d4rl_datasets,
    find_d4rl,
    normalized_score,
    reference_returns,
)
from decision_seq.errors import UserError


def test_reference_scores_of_all_d4rl_datasets() -> None:
    datasets = d4rl_datasets()
    assert len(datasets) == 147 and len({d.file for d in datasets.values()}) == 147
    families = {name.split("-")[0] for name in datasets}
    assert {"hopper", "antmaze", "maze2d", "kitchen", "pen", "door", "flow", "carla"} <= families
    for dataset in datasets.values():
        assert dataset.random < dataset.expert and dataset.steps > 0
    assert reference_returns("kitchen-mixed-v0") == (0.0, 4.0)
    assert reference_returns("maze2d-umaze-v1") == (23.85, 161.86)
    assert normalized_score("antmaze-umaze-v2", 0.75) == 75.0
    assert reference_returns("Hopper-v5") == reference_returns("hopper-expert-v1")
    assert reference_returns("CartPole-v1") is None
    assert find_d4rl("walker_mixed") == datasets["walker2d-medium-replay-v0"]
    assert find_d4rl("hopper_medium_expert-v2") == datasets["hopper-medium-expert-v2"]
    assert find_d4rl("my-log") is None


@pytest.mark.parametrize(
    ("name", "timeouts", "terminal", "limit"),
    [
        ("hopper_medium-v2", True, True, None),
        ("hopper_medium", False, True, 1000),  # v0
        ("antmaze-umaze-v2", True, True, None),
        ("antmaze-umaze-v0", False, False, 700),
        ("maze2d-umaze-sparse-v1", True, False, None),  # never terminates
        ("maze2d-umaze-sparse-v1", False, False, 300),
        ("mini_kitchen_microwave_kettle_light_slider-v0", False, True, 280),
        ("pen-v0_demos_clipped", False, False, 100),
        ("door-expert-v1", True, False, None),
    ],
)
def test_d4rl_families(
    name: str, timeouts: bool, terminal: bool, limit: int | None, tmp_path: Path
) -> None:
    """Ends by terminals, timeouts or the environment's time limit, whichever the family has."""
    limit = limit or 1000
    lengths = [20, limit, 40 if terminal else limit, limit]
    lengths[0] = 20 if terminal or timeouts else limit
    episodes = random_episodes(lengths)
    ends = episodes.offsets[1:] - 1
    early = np.array(lengths) < limit
    episodes.terminated[ends] = early & terminal
    episodes.truncated[ends] = ~(early & terminal)
    path = write_hdf5(tmp_path / f"{name}.hdf5", episodes, timeouts=timeouts)
    store = open_store([str(path)])
    np.testing.assert_array_equal(store.offsets, episodes.offsets)
    np.testing.assert_array_equal(store.terminated, episodes.terminated)
    dataset = find_d4rl(name)
    assert dataset is not None or name.startswith("antmaze")
    if dataset is not None:
        low, high = dataset.reference
        assert store.info["dataset"] == dataset.name
        mean = float(store.episode_returns.mean(dtype=np.float64))
        score = summarize(store)["normalized_score_mean"]
        assert score == pytest.approx(100 * (mean - low) / (high - low))


def test_d4rl_v0_without_timeouts_ends_at_a_thousand_steps(tmp_path: Path) -> None:
    episodes = random_episodes([5, 1000, 3, 1000, 1000])
    episodes.terminated[:] = False
    episodes.terminated[[4, 1007]] = True
    episodes.truncated[:] = False
    episodes.truncated[[1004, 2007, 3007]] = True
    v0 = open_store([str(write_hdf5(tmp_path / "hopper-v0.hdf5", episodes, timeouts=False))])
    v2 = open_store([str(write_npz(tmp_path / "v2.npz", episodes))])
    assert_same(v0, v2)
    assert v0.info["env_id"] == "Hopper-v2"


def test_hdf5_files_of_other_layouts_are_told_how_to_be_read(tmp_path: Path) -> None:
    """Robomimic's, say, or the file within a Minari dataset: an episode each group."""
    import h5py

    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        for number in range(2000):
            file.create_group(f"demo_{number}")
    with pytest.raises(UserError, match=r"by its id, .* hand the episodes over with ") as error:
        open_store([str(tmp_path / "demo.hdf5")])
    assert len(str(error.value)) < 700


def test_a_file_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    import h5py

    path = write_hdf5(tmp_path / "a.hdf5", random_episodes([5]))
    with h5py.File(path, "a") as file:
        del file["observations"]
        file.create_dataset("observations", (10**10, 11), "f4", chunks=(1000, 11))
    with pytest.raises(UserError, match="claims to be larger than"):
        open_store([str(path)])

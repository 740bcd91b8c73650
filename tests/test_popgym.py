"""POPGym's tasks by their own ids: scripted players, and what is collected with them."""

from __future__ import annotations

import numpy as np
import pytest

from decision_seq.behaviours.popgym_players import LAGS, PLAYERS, sinks_ships
from decision_seq.behaviours.tiers import Act, Behaviour, behaviour_for
from decision_seq.data.store import open_store
from decision_seq.data.tools.collect import collect
from decision_seq.envs.registry import make
from decision_seq.errors import UserError

pytest.importorskip("popgym", reason="the extra `memory` is not installed")


LEAST = {  # mean of five episodes of those who cannot but make mistakes
    "popgym-BattleshipEasy-v0": 0.4,
    "popgym-BattleshipMedium-v0": 0.55,
    "popgym-BattleshipHard-v0": 0.55,
    "popgym-NoisyPositionOnlyCartPoleEasy-v0": 0.95,
    "popgym-NoisyPositionOnlyCartPoleMedium-v0": 0.45,
    "popgym-NoisyPositionOnlyCartPoleHard-v0": 0.25,
}


def returns(name: str, behaviour: Behaviour, episodes: int) -> list[float]:
    env, totals = make(f"popgym:{name}"), []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        act, total, ended = behaviour(np.random.default_rng(0), env), 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total, ended = total + float(reward), terminated or truncated
        totals.append(total)
    return totals


@pytest.mark.parametrize("name", [name for name, _ in PLAYERS if name not in LEAST])
def test_players_make_no_mistake(name: str) -> None:
    behaviour, provenance = behaviour_for(f"popgym:{name}", "expert", None)
    assert provenance["tier"] == "expert" and provenance["behaviour"]
    assert returns(name, behaviour, 2) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("name", LEAST)
def test_players_play_well(name: str) -> None:
    behaviour, _ = behaviour_for(f"popgym:{name}", "expert", None)
    assert np.mean(returns(name, behaviour, 5)) >= LEAST[name]


def test_what_the_players_owe_to_memory() -> None:
    """Pushing to where the pole is seen to lean, and shots that no hit guides, do worse."""
    cart = returns(
        "popgym-NoisyPositionOnlyCartPoleEasy-v0", lambda _rng, _env: lambda x: int(x[1] > 0), 5
    )
    assert np.mean(cart) < 0.4

    def without_hits(rng: np.random.Generator, _env: object) -> Act:
        act = sinks_ships(8)(rng)
        return lambda _hit: act(0)

    assert np.mean(returns("popgym-BattleshipEasy-v0", without_hits, 5)) < 0.25


def test_a_lag_too_short_is_wrong() -> None:
    """What the test above would say if a player were off by one."""
    env = make("popgym:popgym-RepeatPreviousEasy-v0")
    observation, _ = env.reset(seed=0)
    seen, total, ended = [], 0.0, False
    while not ended:
        seen.append(observation)
        observation, reward, ended, _, _ = env.step(seen[-(LAGS["Easy"] - 1) :][0])
        total += float(reward)
    assert total < 0.5


def test_data_are_collected_and_read() -> None:
    behaviour, provenance = behaviour_for("popgym:popgym-AutoencodeEasy-v0", "expert", None)
    collect("popgym:popgym-AutoencodeEasy-v0", behaviour, 206, "toy/encode-v0", 0, provenance)
    store = open_store(["toy/encode-v0"])
    assert store.lengths.tolist() == [103, 103]
    np.testing.assert_allclose(store.episode_returns, 1.0, rtol=1e-6)


def test_the_module_to_name_is_said() -> None:
    with pytest.raises(UserError, match="write `popgym:popgym-RepeatFirstHarder-v0`"):
        make("popgym-RepeatFirstHarder-v0")

"""Configs: strict, sentence-sized errors, and a resolved form that can be fed back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from decision_seq.agents import PRESETS, SequenceAgent
from decision_seq.agents.presets import preset_of
from decision_seq.agents.spec import AgentSpec
from decision_seq.backbones import BackboneConfig
from decision_seq.config import dump_yaml, parse_overrides, to_plain
from decision_seq.errors import UserError
from decision_seq.eval.compare.matrix import load_matrix
from decision_seq.run_config import RunConfig, load_run_config, run_config, write_run_config
from decision_seq.spaces import table_of

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = sorted(p for p in CONFIGS.glob("*.yaml") if not p.name.startswith(("compare", "sweep")))
COMPARES = sorted(CONFIGS.glob("compare*.yaml"))
HOPPER = CONFIGS / "hopper-decision-mamba.yaml"


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_config_builds_its_agent(path: Path) -> None:
    config = load_run_config(path)
    env = path.stem.partition("-")[0]
    assert env in config.env.lower() and config.name in PRESETS
    if config.env in ("breakout", "pong", "qbert", "seaquest"):
        spec = AgentSpec((84, 84), 6, True, 999)
    elif config.name.startswith("goal"):
        parts = {"observation": 4, "achieved_goal": 2, "desired_goal": 2}
        boxes = {k: spaces.Box(-np.inf, np.inf, (n,)) for k, n in parts.items()}
        spec = AgentSpec((8,), 2, False, 299, observation_space=table_of(spaces.Dict(boxes)))
    else:
        spec = AgentSpec((11,), 3, False, 999)
    assert isinstance(config.agent.agent(config.agent, spec), SequenceAgent)


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        pytest.param("memory", AgentSpec((4,), 4, True, max_timestep=29), id="t-maze-30"),
        pytest.param("mixers-mujoco", AgentSpec((11,), 3, False, max_timestep=770), id="hopper"),
        pytest.param("mixers-mujoco", AgentSpec((17,), 6, False, max_timestep=999), id="walker2d"),
    ],
)
def test_mixers_are_compared_at_one_size(config: str, spec: AgentSpec, tmp_path: Path) -> None:
    jobs = load_matrix(CONFIGS / f"compare-{config}.yaml", tmp_path)
    sizes = {}
    for job in jobs[:: len({job.config.seed for job in jobs})]:
        agent = job.config.agent.agent(job.config.agent, spec)
        sizes[job.config.name] = sum(p.numel() for p in agent.parameters())
    kinds = {type(job.config.agent.backbone).kind for job in jobs}
    assert kinds == set(BackboneConfig.registry) - {"pointwise"}
    for name, size in sizes.items():
        assert 0.95 < size / sizes["decision-mamba"] < 1.05, (name, size)


@pytest.mark.parametrize("game", ["breakout", "pong", "qbert", "seaquest"])
def test_attention_and_mamba_play_every_game(game: str) -> None:
    for preset in ("decision-transformer", "decision-mamba"):
        config = load_run_config(CONFIGS / f"{game}.yaml", [f"agent.preset={preset}"])
        assert config.env == game and config.name == preset
        agent = config.agent.agent(config.agent, AgentSpec((84, 84), 6, True, 999))
        assert agent.features == 3136 and config.agent.returns.clipped
    mixers = load_run_config(CONFIGS / f"{game}.yaml", ["agent.encoder.kind=symmetric"])
    assert mixers.agent.encoder is not None and mixers.agent.encoder.kind == "symmetric"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("env", ["hopper", "halfcheetah", "walker2d"])
def test_every_preset_on_every_environment(env: str, preset: str, tmp_path: Path) -> None:
    config = load_run_config(CONFIGS / f"{env}.yaml", [f"agent.preset={preset}"])
    assert config.env.lower().startswith(env)
    assert config.name == preset == preset_of(config.agent)
    spec = AgentSpec((17,), 6, False, 999)
    if config.agent.kind == "goal_conditioned":
        with pytest.raises(UserError, match="needs observations with a part `desired_goal`"):
            config.agent.agent(config.agent, spec)
    else:
        assert config.agent.agent(config.agent, spec).embedding.kinds == config.agent.tokens
    write_run_config(config, tmp_path / "config.yaml")
    assert load_run_config(tmp_path / "config.yaml") == config


def test_an_agent_is_named_after_what_it_is() -> None:
    other = load_run_config(CONFIGS / "hopper.yaml", ["agent.backbone.kind=attention"])
    assert other.name == "decision-transformer"
    plain = load_run_config(CONFIGS / "hopper.yaml", ["agent.backbone.kind=pointwise"])
    assert plain.name == "pointwise"  # no preset has it
    named = load_run_config(CONFIGS / "hopper.yaml", ["name=mine"])
    assert named.name == "mine"


@pytest.mark.parametrize("path", COMPARES, ids=lambda p: p.stem)
def test_every_comparison_expands(path: Path) -> None:
    jobs = load_matrix(path, Path("out"))
    assert len({job.name for job in jobs}) == len(jobs) > 1


def test_paper_values_are_the_defaults_for_hopper() -> None:
    config = load_run_config(HOPPER)
    assert (config.agent.context_length, config.agent.backbone.layers) == (20, 3)
    assert config.agent.backbone.width == 256  # the paper's for hopper medium
    assert config.train.learning_rate == 1e-4 and config.train.gradient_clip == 0.25
    assert config.eval.targets == (3600.0, 1800.0) and config.eval.episodes == 100


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_resolved_config_reads_back_the_same(path: Path, tmp_path: Path) -> None:
    config = load_run_config(path, ["seed=7", "data.sources=[a.npz]"])
    write_run_config(config, tmp_path / "config.yaml")
    assert load_run_config(tmp_path / "config.yaml") == config
    assert config.data.sources == (str(Path("a.npz").resolve()),)


def test_overrides_reach_nested_fields() -> None:
    config = load_run_config(
        HOPPER,
        ["agent.backbone.width=32", "data.sources=[a.npz,b.hdf5]", "train.learning_rate=1e-3"],
    )
    assert config.agent.backbone.width == 32
    assert [Path(s).name for s in config.data.sources] == ["a.npz", "b.hdf5"]
    assert config.train.learning_rate == 1e-3


def test_another_backbone_keeps_the_shared_fields() -> None:
    config = load_run_config(HOPPER, ["agent.backbone.kind=attention", "agent.backbone.heads=4"])
    assert config.agent.backbone.kind == "attention"
    assert config.agent.backbone.width == 256  # said in the file, and every backbone has it


def test_another_preset_keeps_what_the_file_said_of_every_backbone() -> None:
    config = load_run_config(HOPPER, ["agent.preset=decision-transformer"])
    assert config.agent.backbone.kind == "attention" and config.agent.backbone.width == 256


def test_another_kind_of_agent_drops_the_options_of_the_first() -> None:
    files = ["agent.preset=reinformer", "agent.expectile=0.9", "agent.context_length=7"]
    first = to_plain(load_run_config(HOPPER, files))
    second = run_config(first, {"agent": {"preset": "decision-mamba"}}, "a.yaml").agent
    assert second.kind == "return_conditioned" and second.context_length == 7
    assert second.tokens == ("return_to_go", "observation", "action")


def test_another_preset_replaces_the_agent() -> None:
    config = load_run_config(HOPPER, ["agent.preset=bc"])
    assert config.agent.kind == "behaviour_cloning" and config.agent.tokens == ("observation",)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("agent.backbone.widht=3", ["`agent.backbone.widht`", "`agent.backbone.width`"]),
        ("trian.steps=3", ["`trian`", "`train`"]),
        ("train.steps=many", ["`train.steps`", "whole number", "'many'"]),
        ("train.steps=1.5", ["`train.steps`", "whole number"]),
        ("train.steps=true", ["`train.steps`", "whole number"]),
        ("train.steps=0", ["train.steps is 0"]),
        ("train.learning_rate=.nan", ["`train.learning_rate`", "finite"]),
        ("agent.backbone.kind=mambo", ["`agent.backbone.kind`", "mambo", "`mamba`"]),
        ("agent.backbone.dropout=1.5", ["agent.backbone.dropout is 1.5"]),
        ("agent.preset=decision-mambo", ["decision-mambo", "the nearest is `decision-mamba`"]),
        ("agent.tokens=action", ["`agent.tokens`", "list"]),
        ("agent.tokens=[observation]", ["agent.tokens is [observation]", "[return_to_go, obs"]),
        ("agent.temperature=-1", ["agent.temperature is -1"]),
        ("eval.context=widow", ["`eval.context`", "widow", "window, stream"]),
        ("data=3", ["`data`", "mapping"]),
        ("agent=3", ["`agent`", "mapping"]),
        ("agent.kind=[a]", ["`agent.kind`", "must be one of"]),
        ("agent.preset=[bc]", ["`agent.preset`"]),
        ("train.betas=[1.5,2]", ["betas is [1.5, 2.0]"]),
        ("train.weight_decay=-1", ["weight_decay is -1"]),
        ("eval.episodes=0", ["eval.episodes is 0"]),
        ("eval.interval=-1", ["eval.interval is -1"]),
        ("eval.targets=[9,9.0]", ["eval.targets is [9.0, 9.0], which names one twice"]),
        ("data.sources=[a,b,a]", ["data.sources is ['a', 'b', 'a'], which names one twice"]),
        ("train={steps: 5, steps: 6}", ["`steps` is given twice"]),
        ("seed=-1", ["seed is -1"]),
        ("eval.targets=foo", ["`eval.targets` is 'foo'", "auto or a list of numbers"]),
        ("eval.targets=[.inf]", ["`eval.targets[0]`", "finite"]),
        ("name=2020-13-45", ["--set name=2020-13-45", "not valid YAML"]),
        ("train.steps", ["--set train.steps", "KEY=VALUE"]),
    ],
)
def test_errors_name_file_key_and_nearest(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_run_config(HOPPER, [override])
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"--set {override}: ")
    for word in words:
        assert word in message


def test_an_error_of_the_file_is_said_of_the_file(tmp_path: Path) -> None:
    """Whatever is set beside it: only the key that was typed is the typist's."""
    path = tmp_path / "mine.yaml"
    path.write_text("env: hopper\ndata: {sources: [a]}\ntrain: {stpes: 3}\n")
    for override in ("train.batch_size=3", "seed=1"):
        with pytest.raises(UserError, match=r"mine\.yaml: `train\.stpes` is not a known key"):
            load_run_config(path, [override])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "a: [",
        "a: 1",
        "\x00",
        "env: 3\ndata: {sources: [a]}",
        "env: hopper\ndata: {sources: [a]}\ntrain: {steps: 3}\ntrain: {batch_size: 2}",
    ],
)
def test_broken_files_are_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken\.yaml"):
        load_run_config(path)


def test_scientific_notation_is_a_number() -> None:
    assert parse_overrides(["a.b=1e-4"]) == {"a": {"b": 1e-4}}
    assert "learning_rate: 0.0001" in dump_yaml(load_run_config(HOPPER))
    assert isinstance(load_run_config(HOPPER), RunConfig)


def test_names_of_before_are_still_read() -> None:
    overrides = ["agent.backbone.kind=none"]
    assert load_run_config(CONFIGS / "hopper.yaml", overrides).agent.backbone.kind == "pointwise"
    overrides = ["agent.backbone.kind=conv", "agent.backbone.taps=4"]
    assert load_run_config(CONFIGS / "hopper.yaml", overrides).agent.backbone.kernel_size == 4  # type: ignore[attr-defined]

"""Every logger gets what metrics.jsonl gets, goes on with the run that it has, and is read back by
its own package without a network."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from tensorboard.summary.writer import event_file_writer

from decision_seq.errors import UserError
from decision_seq.files import read_jsonl
from decision_seq.run_config import RunConfig, run_config
from decision_seq.settings import LoggerName
from decision_seq.training.log import MetricsLog, log_result
from decision_seq.training.loggers import LOGGERS, Wandb
from decision_seq.training.loop import train

Points = list[tuple[float, float]]  # (step, value)


def config_for(data: Path | str, *loggers: str) -> RunConfig:
    agent = {"preset": "decision-transformer", "context_length": 4}
    agent |= {"backbone": {"width": 8, "layers": 1, "heads": 1}}
    settings = {"steps": 4, "batch_size": 4, "log_interval": 2, "loggers": list(loggers)}
    plain = {"env": "point-run", "data": {"sources": [str(data)]}, "agent": agent}
    return run_config(plain | {"train": settings}, {}, "test")


def from_tensorboard(run: Path, name: str) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    return [(event.step, event.value) for event in board.Scalars(name)]


def from_wandb(run: Path, name: str) -> Points:
    """Offline, a run that goes on is a second folder with the same id, which `wandb sync` joins."""
    from wandb.proto.wandb_internal_pb2 import Record

    def records(file: Path) -> list[Record]:
        return [Record.FromString(data) for data in leveldb_records(file.read_bytes())]

    points, files = [], sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1
    for file in files:
        deadline = time.monotonic() + 60
        while not any(record.HasField("exit") for record in records(file)):
            assert time.monotonic() < deadline  # its service writes on for a while
            time.sleep(0.05)
        for record in records(file):
            items = record.history.item
            row = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in items}
            if name in row:
                points.append((row["step"], row[name]))
    return points


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Of LevelDB's log format, as far as small files need it: behind a header of 7 bytes checksum,
    length and kind of each."""
    assert len(data) < 2**15  # one block
    at = 7
    while at < len(data):
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        assert kind == 1  # a whole record
        yield data[at + 7 : at + 7 + length]
        at += 7 + length


def from_trackio(run: Path, name: str) -> Points:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (logged,) = trackio.Api().runs("decision-seq")
    values = SQLiteStorage.get_metric_values("decision-seq", logged.name, name)
    return [(row["step"], row["value"]) for row in values]


def from_mlflow(run: Path, name: str) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient()
    place = client.get_experiment_by_name("decision-seq")
    assert place is not None
    (logged,) = client.search_runs([place.experiment_id])
    assert logged.info.status == "FINISHED" and logged.data.params["agent.context_length"] == "4"
    history = client.get_metric_history(logged.info.run_id, name)
    return [(point.step, point.value) for point in history]


READERS: dict[str, Callable[[Path, str], Points]] = {
    "tensorboard": from_tensorboard,
    "wandb": from_wandb,
    "trackio": from_trackio,
    "mlflow": from_mlflow,
}


def test_configs_can_name_every_logger() -> None:
    assert set(get_args(LoggerName)) == set(LOGGERS) == set(READERS)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_has_what_metrics_have(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run was killed between two checkpoints: no point twice, none missing."""
    if not importlib.util.find_spec(LOGGERS[name].module):
        pytest.skip(f"needs the extra {LOGGERS[name].extra}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    # TensorBoard counts its files in their names, by which it sorts them: 8, 9, 10
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(8))
    run, before = tmp_path / "runs" / "dm", dict(os.environ)
    run.mkdir(parents=True)
    config = config_for("no.npz", name)
    with MetricsLog(run, config, 0) as log:
        for step in (2, 4, 6):
            log.write(step, loss=1 / step)
    with MetricsLog(run, config, 4) as log:  # step 6 came after the last checkpoint
        for step in (6, 8):
            log.write(step, loss=1 / step, gradient_norm=float("nan"))
    log_result(run, config, 8, {"score/5": 71.5})
    rows = [(row["step"], row["loss"]) for row in read_jsonl(run / "metrics.jsonl")]
    assert [step for step, _ in rows] == [2, 4, 6, 8]
    assert READERS[name](run, "loss") == [(step, pytest.approx(loss)) for step, loss in rows]
    assert READERS[name](run, "score/5") == [(8, 71.5)]
    assert dict(os.environ) == before


def test_what_is_missing_is_said_before_training(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wandb, "module", "no_such_package")
    with pytest.raises(UserError, match=r"wandb, which is not installed: pip install .*\[wandb\]"):
        train(config_for(toy_file, "wandb"), tmp_path / "run", torch.device("cpu"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"`train.loggers.0.` is 'wand'; it must be one of"):
        config_for(toy_file, "wand")


def test_a_logger_that_fails_stops_no_run(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """While it is opened it does, with a sentence; on the way it is left out."""

    def fail(*_: object) -> None:
        raise ConnectionError("the server went away\nand more")

    cpu, run = torch.device("cpu"), tmp_path / "run"
    monkeypatch.setattr(Wandb, "module", "json")
    monkeypatch.setattr(Wandb, "__init__", fail)
    said = r"wandb cannot be opened \(ConnectionError: the server went away\); do `wandb login`"
    with pytest.raises(UserError, match=said):
        train(config_for(toy_file, "wandb"), run, cpu)
    monkeypatch.setattr(Wandb, "__init__", lambda *_: None)
    monkeypatch.setattr(Wandb, "write", fail)
    assert train(config_for(toy_file, "wandb", "tensorboard"), run, cpu)
    assert capsys.readouterr().err.count("wandb: is no longer logged to (ConnectionError: the") == 1
    assert len(from_tensorboard(run, "loss")) == 2
    # other loggers are no other run
    monkeypatch.setattr(Wandb, "module", "no_such_package")
    assert train(config_for(toy_file), run, cpu, resume=True)

"""Logs as tables: columns by any name; what is malformed is one sentence with the line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import random_episodes
from source_files import LENGTHS, assert_same, by_npz, table, write_csv

from decision_seq.data.store import open_store
from decision_seq.errors import UserError


def test_own_names_by_a_file_beside_the_log(tmp_path: Path) -> None:
    episodes = random_episodes(LENGTHS)
    columns = table(episodes)
    renamed = {
        **{"run": columns["episode"], "x": columns["observation_0"]},
        **{"note": ["a,b"] * 23, "y": columns["observation_1"], "z": columns["observation_2"]},
        **{"u": columns["action_0"], "v": columns["action_1"], "r": columns["reward"]},
        "died": [int(flag) for flag in columns["terminated"]],
    }
    path = write_csv(tmp_path / "log.csv", renamed)
    with pytest.raises(UserError, match=r"log\.columns\.yaml"):
        open_store([str(path)])
    (tmp_path / "log.columns.yaml").write_text(
        "episode: run\nobservations: [x, y, z]\nactions: [u, v]\nreward: r\nterminated: died\n"
        "env: point-run\n"
    )
    store = open_store([str(path)])
    assert_same(open_store([by_npz(tmp_path, episodes)]), store)
    assert store.info["env_id"] == "decision-seq/PointRun-v0"
    (tmp_path / "log.columns.yaml").write_text(
        "episode: run\nobservations: [x]\nactions: [u, v]\nreward: r\nterminated: died\n"
    )
    assert open_store([str(path)]).observations.shape == (23, 1)  # read again
    (tmp_path / "log.columns.yaml").write_text(
        "episode: run\nobservations: [x, y, x]\nactions: [u, v]\nreward: r\nterminated: died\n"
    )
    with pytest.raises(UserError, match=r"columns\.yaml: column `x` is listed twice"):
        open_store([str(path)])
    (tmp_path / "log.columns.yaml").rename(tmp_path / "log.columns.yml")
    with pytest.raises(UserError, match=r"columns\.yml: column `x` is listed twice"):
        open_store([str(path)])
    (tmp_path / "log.columns.yaml").write_text("episodes: run\n")
    with pytest.raises(UserError, match="`episodes` is not a known key; the nearest is `episode`"):
        open_store([str(path)])


def change(name: str, row: int, value: Any) -> Callable[[dict[str, list[Any]]], None]:
    def apply(columns: dict[str, list[Any]]) -> None:
        columns[name][row] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change("step", 3, 9), ["line 5: `step` is 9 after 2", "rise by one"]),
        (change("step", 2, 1), ["line 4: `step` is 1 after 1"]),
        (change("episode", 20, 10), ["line 22: episode 10 comes back"]),
        (change("reward", 4, "oops"), ["line 6: `reward` is 'oops', not a number"]),
        (change("observation_1", 0, ""), ["line 2: `observation_1` is '', not a number"]),
        (change("terminated", 1, "maybe"), ["line 3: `terminated` is 'maybe', not true"]),
        (change("terminated", 1, True), ["line 3: `terminated` is set, but the episode goes on"]),
        (change("episode", 3, "nan"), ["line 5: `episode` is nan", "number of its episode"]),
        (change("observation_0", 5, "nan"), ["`observations` is NaN", "step 5"]),
        (lambda c: c.pop("reward"), ["column `reward` is missing", "columns.yaml"]),
        (lambda c: c.pop("episode"), ["column `episode` is missing"]),
        (lambda c: [c.pop(f"observation_{i}") for i in range(3)], ["no observation columns"]),
        (lambda c: [c.pop(f"action_{i}") for i in range(2)], ["no action columns", "act_"]),
        (lambda c: [v.clear() for v in c.values()], ["has no rows"]),
        (change("reward", 22, "1\x00"), ["line 24"]),
    ],
)
def test_bad_logs_are_one_sentence_with_the_line(
    damage: Callable[[dict[str, list[Any]]], Any], words: list[str], tmp_path: Path
) -> None:
    columns = table(random_episodes(LENGTHS))
    damage(columns)
    path = write_csv(tmp_path / "bad.csv", columns)
    with pytest.raises(UserError) as error:
        open_store([str(path)])
    for word in ("bad.csv", *words):
        assert word in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00x", b"\n\n", b'"', b"a" * 200_000])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".pkl"])
def test_what_is_no_table_is_one_sentence(content: bytes, suffix: str, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"bad{suffix}") as error:
        open_store([str(path)])
    assert "\n" not in str(error.value)


def test_a_cut_off_log_names_the_line(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "cut.csv", table(random_episodes(LENGTHS)))
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b",", 0, len(content) - 30)])
    with pytest.raises(UserError, match=r"line 2\d has \d cells"):
        open_store([str(path)])


def test_logs_with_blank_lines_quotes_and_a_byte_order_mark(tmp_path: Path) -> None:
    episodes = random_episodes(LENGTHS)
    path = write_csv(tmp_path / "log.csv", table(episodes))
    lines = path.read_text().splitlines()
    quoted = [",".join(f'"{cell}"' for cell in line.split(",")) for line in lines]
    path.write_text("\ufeff" + "\r\n".join([*quoted[:5], "", *quoted[5:], "", ""]))
    assert_same(open_store([by_npz(tmp_path, episodes)]), open_store([str(path)]))
    quoted[7] = quoted[7].replace('"', "", 1)
    lines = [*quoted[:5], "", *quoted[5:6], quoted[6].replace('"1', '"x', 1)]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 8: `episode` is 'x"):
        open_store([str(path)])


def test_our_own_sentences_are_not_wrapped_in_others(tmp_path: Path) -> None:
    """A whole file with a column missing is not damaged, and one log is told as the other."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {k: v for k, v in table(random_episodes(LENGTHS)).items() if k != "reward"}
    columns |= {f"{letter * 40}": columns["step"] for letter in "abcdef"}  # long headers
    write_csv(tmp_path / "log.csv", columns)
    parquet.write_table(pyarrow.table(columns), tmp_path / "log.parquet")
    said = []
    for name in ("log.csv", "log.parquet"):
        with pytest.raises(UserError, match="column `reward` is missing") as error:
            open_store([str(tmp_path / name)])
        said.append(str(error.value).replace(name, "FILE"))
    assert said[0] == said[1] and said[0].endswith("which it is in log.columns.yaml")
    assert not issubclass(UserError, ValueError | OSError | RuntimeError | LookupError | TypeError)

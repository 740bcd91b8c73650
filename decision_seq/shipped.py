"""What comes with the package beside code: configs by name, trained agents of the zoo.

They lie at the top of the project; setup.py puts them into the package where it is installed.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

import decision_seq
from decision_seq.errors import UserError
from decision_seq.files import atomic_folder

PACKAGE = Path(decision_seq.__file__).parent


def shipped(what: str) -> Path:
    """The folder `configs` or `zoo`: inside an installed package, beside it in a checkout."""
    inside = PACKAGE / what
    return inside if inside.is_dir() else PACKAGE.parent / what


def config_names() -> list[str]:
    """Names of the shipped configs."""
    return sorted(path.stem for path in shipped("configs").glob("*.yaml"))


def config_file(config: Path | str) -> Path:
    """The file that `config` means: that of a shipped config where it is the name of one, such as
    hopper, else itself.

    Raises UserError where it is a name and none is shipped, or one is meant but its path is wrong.
    """
    path, names = Path(config), config_names()
    if path.is_file():
        return path
    if path.stem in names and path.name != str(config):
        raise UserError(f"{path}: is no file; the config that is shipped is called {path.stem}")
    if path.name != str(config) or path.suffix not in ("", ".yaml"):
        return path
    if path.stem in names:
        return shipped("configs") / f"{path.stem}.yaml"
    hint = _nearest(path.stem, names, "configs")
    raise UserError(f"{path}: is no file, and no config of that name is shipped; {hint}")


def run_at(run: str | os.PathLike[str], to_write: bool = False) -> Path:
    """The run folder that `run` means: itself, or the shipped entry where it is zoo/NAME and no
    such folder is here.

    Args:
        run: path of a run folder.
        to_write: it will be written to, so what is shipped is copied to where it was named.

    Raises:
        UserError: it is called zoo/NAME and there is no such entry, here or shipped.
    """
    path = Path(run)
    if path.parent != Path("zoo") or path.exists():
        return path
    entry = shipped("zoo") / path.name
    if not entry.is_dir():
        names = sorted(folder.name for folder in shipped("zoo").glob("*/"))
        raise UserError(f"{path}: the zoo has no such agent; {_nearest(path.name, names, 'zoo')}")
    if not to_write:
        return entry
    with atomic_folder(path) as folder:
        shutil.copytree(entry, folder, dirs_exist_ok=True)
    return path


def _nearest(name: str, names: Sequence[str], what: str) -> str:
    """A hint for what may have been meant."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"the nearest is {near[0]}" if near else f"`decision-seq list {what}` shows those"


def config_summaries() -> dict[str, str]:
    """name -> what its comment begins with."""
    return {name: _summary(config_file(name)) for name in config_names()}


def _summary(path: Path) -> str:
    """The first sentence of the comment, which a command or a full stop ends."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = "\n".join(line[1:].strip() for line in lines if line.startswith("#"))
    return textwrap.shorten(re.split(r"[.:]\n|\. ", comment)[0], 100, placeholder=" ...")

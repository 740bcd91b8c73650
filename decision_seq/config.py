"""Frozen dataclasses <-> YAML, strictly: an unknown key is an error that names the nearest one.

A dataclass with a class attribute `registry` (kind -> subclass) is a choice: its mapping says
`kind: NAME` and the fields are those of the registered subclass.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from decision_seq.errors import UserError

T = TypeVar("T")
V = TypeVar("V", bound=type[Any])  # a config class that `kind` can name


FORMER_KINDS: dict[str, str] = {}  # what configs and checkpoints of before say -> its name now


def register(kind: str, summary: str, formerly: str | None = None) -> Callable[[V], V]:
    """Class decorator: make a config dataclass a choice for `kind` in its family's `registry`.

    `summary` is a line about it, for `decision-seq list`. The name that it had `formerly` is still
    read, as are the old names of fields in a class's `former_fields`, {old: new}.
    """
    if formerly:
        FORMER_KINDS[formerly] = kind

    def add(config: V) -> V:
        config.kind, config.summary = kind, summary
        config.registry[kind] = config
        return config

    return add


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file. Raises UserError if it is missing or is not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; expected YAML") from None
    data = _yaml(text, str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {_name(data)}")
    return data


def check_command(data: Mapping[str, Any], path: Path, command: str) -> None:
    """Raise UserError where a file is a config of another command's."""
    marks = {"train": "data", "compare": "agents", "sweep": "space"}  # a key that only its own have
    if marks[command] in data:
        return
    for other, key in marks.items():
        if key in data:
            raise UserError(
                f"{path}: is no config for `decision-seq {command}`; its key `{key}` is one of "
                f"`decision-seq {other}`"
            )


def parse_overrides(assignments: typing.Iterable[str]) -> dict[str, Any]:
    """`["agent.backbone.width=256"]` -> `{"agent": {"backbone": {"width": 256}}}`."""
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"--set {assignment}: expected KEY=VALUE, e.g. train.steps=300")
        value = _yaml(text, f"--set {assignment}")
        *parents, leaf = key.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {assignment}: `{parent}` was given a plain value already")
        node[leaf] = value
    return result


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`override` laid over `base`, mapping by mapping."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merge(old, value)
        merged[key] = value
    return merged


def build(cls: type[T], data: Any, source: str, key: str = "") -> T:
    """Make a `cls` from plain data.

    Args:
        cls: a dataclass, or the base of a registry of them.
        data: mapping of field name to value.
        source: file name for error messages.
        key: dotted path of `data` inside the file.

    Raises:
        UserError: unknown key or wrong type, naming file, key and the nearest valid key.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{source}: `{key}` must be a mapping, found {_name(data)}")
    prefix = f"{key}." if key else ""
    values = dict(data)
    if hasattr(cls, "registry"):
        cls = _variant(cls, values, source, prefix)
    former = getattr(cls, "former_fields", {})
    values = {former.get(name, name): value for name, value in values.items()}
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            hint = nearest(str(name), fields, prefix)
            raise UserError(f"{source}: `{prefix}{name}` is not a known key; {hint}")
    for name, field in fields.items():
        if name not in values and _required(field):
            raise UserError(f"{source}: `{prefix}{name}` is missing")
    hints = typing.get_type_hints(cls)
    parsed = {n: _convert(hints[n], v, source, prefix + n) for n, v in values.items()}
    try:
        return cls(**parsed)
    except UserError as error:  # a range check in __post_init__
        raise UserError(f"{source}: {prefix}{error}") from None


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and scalars -> what YAML and JSON can hold; `build` reads it back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return kind | fields
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def dump_yaml(value: Any) -> str:
    """YAML text of a dataclass, in field order."""
    return yaml.safe_dump(to_plain(value), sort_keys=False)


def in_words(value: Any) -> str:
    """A setting as tables and sentences show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from None


def _variant(cls: Any, values: dict[str, Any], source: str, prefix: str) -> Any:
    kind = values.pop("kind", None)
    if isinstance(kind, str) and kind not in cls.registry:
        kind = FORMER_KINDS.get(kind, kind)
    if not isinstance(kind, str):
        choices = ", ".join(sorted(cls.registry))
        raise UserError(f"{source}: `{prefix}kind` is {kind!r}; it must be one of {choices}")
    if kind not in cls.registry:
        hint = nearest(str(kind), cls.registry)
        raise UserError(f"{source}: `{prefix}kind` is {kind!r}, which does not exist; {hint}")
    return cls.registry[kind]


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # `X | None`, or `X | Literal[...]`
        if value is None and type(None) in args:
            return None
        literals = [a for a in args if typing.get_origin(a) is typing.Literal]
        others = [a for a in args if a is not type(None) and a not in literals]
        words = [word for literal in literals for word in typing.get_args(literal)]
        if value in words:
            return value
        if words and others and isinstance(value, str):
            choices = ", ".join(words)
            raise UserError(
                f"{source}: `{key}` is {value!r}; it must be {choices} or {_described(others[0])}"
            )
        (hint,) = others or literals
        return _convert(hint, value, source, key)
    if origin is typing.Literal:
        if value not in args:
            choices = ", ".join(str(a) for a in args)
            raise UserError(f"{source}: `{key}` is {value!r}; it must be one of {choices}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{source}: `{key}` must be a list, found {_name(value)}")
        items = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(items) != len(value):
            raise UserError(f"{source}: `{key}` needs {len(items)} values, found {len(value)}")
        parts = zip(items, value, strict=True)
        return tuple(_convert(a, v, source, f"{key}[{i}]") for i, (a, v) in enumerate(parts))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{source}: `{key}` must be a mapping, found {_name(value)}")
        return {str(k): _convert(args[1], v, source, f"{key}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, source, key)
    return _scalar(hint, value, source, key)


def _scalar(hint: Any, value: Any, source: str, key: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{source}: `{key}` is {value}; it must be a finite number")
    if type(value) is not hint:
        raise UserError(f"{source}: `{key}` must be {_described(hint)}, found {_name(value)}")
    return value


def _described(hint: Any) -> str:
    """`a number`, `a list of numbers`: for messages."""
    if typing.get_origin(hint) is tuple:
        return f"a list of {_described(typing.get_args(hint)[0]).removeprefix('a ')}s"
    return _TYPE_NAMES.get(hint, str(hint))


def _required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def nearest(name: str, valid: typing.Iterable[str], prefix: str = "") -> str:
    """What was meant by `name`, where one of the valid names is near; else all of them."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"the nearest is `{prefix}{close[0]}`"
    return "valid: " + ", ".join(f"`{prefix}{v}`" for v in valid)


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _name(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if value is None:
        return "nothing"
    return f"{type(value).__name__} {value!r}"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-4` as text; people who write learning rates mean a number. PyYAML keeps
    the last of a key that is there twice, and who copies a block to rename it loses the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        given: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in given:
                    said = f"`{key.value}` is given twice; rename or remove one"
                    raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
                given.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)

"""Which environments a dataset says it is from, and whether several go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from decision_seq.data.findings import Finding
from decision_seq.envs.variants import Difference, difference, known
from decision_seq.errors import UserError


def recorded(info: Mapping[str, Any]) -> list[str]:
    """The environments that a dataset's `info` names: one, none, or several variants of one. What
    is known here of their arguments counts, whatever was known when the data were read."""
    own = info.get("env_id")
    found = map(known, [own] if own else info.get("env_ids", ()))
    return [str(one) if one.module is None else f"{one.module}:{one}" for one in found]


def together(
    infos: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[dict[str, Any], list[Finding]]:
    """What the `info` of one dataset made of several says of its environment, and a finding where
    these differ in what may matter. Sources that name none are taken for the others'.

    Raises UserError where two differ beyond doubt.
    """
    environments: dict[str, str] = {}  # by what the first source of it is called
    for info, name in zip(infos, names, strict=True):
        for own in recorded(info):
            environments.setdefault(own, name)
    if not environments:
        return {}, []
    first, *others = environments
    differences: list[Difference] = []
    for other in others:
        found, back = difference(first, other), difference(other, first)
        if found and back and found.certain and back.certain:
            knowingly = "; if they shall count as one, import each with --env and the same name"
            raise UserError(
                f"{environments[other]}: is of {other}, but {environments[first]} of {first}; "
                "sources of one dataset must come from the same environment"
                f"{knowingly if found.kind == 'arguments' else ''}"
            )
        if found:
            differences.append(found)
    if not differences:
        return {"env_id": first}, []
    said = ", ".join(f"{environments[one]} of {one}" for one in environments)
    finding = Finding(
        "warning",
        "environments",
        len(environments),
        f"its sources are of different environments: {said}",
        "their rewards, ends or dynamics may differ: train on one of them, or on both knowingly",
    )
    return {"env_ids": list(environments)}, [finding]

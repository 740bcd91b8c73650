"""What a step looks like: a space as an ordered table of leaves, each of a kind of its own.

    table = table_of(env.observation_space)     leaves with their paths, `state.position`
    table.observe(observation)                  as stores keep it and agents take it
    actions = table_of(env.action_space, acts=True)
    actions.pack(action)                        one row of numbers, as stores keep it
    actions.unpack(row)                         as the environment takes it

A kind is one file in kinds/ and its import here.
"""

from decision_seq.spaces.kinds import bits, category, image, text, vector  # noqa: F401  # register
from decision_seq.spaces.leaf import Leaf, NumberLeaf
from decision_seq.spaces.table import Table, table_of

__all__ = ["Leaf", "NumberLeaf", "Table", "table_of"]

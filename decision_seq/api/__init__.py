"""The commands as functions of Python: the same names, arguments and defaults, and one way to do a
thing, since the commands call these. What they return shows itself in notebooks.

`import decision_seq as ds` has them: ds.collect, ds.train, ... (docs/python.md).
"""

from decision_seq.api import datasets

__all__ = ["datasets"]

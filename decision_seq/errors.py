"""The one error a person can mend: it names the file, the field, the value and the fix; and what is
worth saying on the way."""

from __future__ import annotations

import functools
import sys


class UserError(Exception):
    """Bad input. The command line prints the sentence without a traceback and exits with code 2.

    No ValueError or OSError: what is raised while a file is read must not be taken for a fault of
    the file and be wrapped in another sentence. It may quote a damaged file: what cannot be
    printed is escaped, so that it stays one line and no terminal obeys it.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def printable(text: str) -> str:
    """`text` in one line that no terminal obeys: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@functools.cache
def say_once(line: str) -> None:
    """Print `line` to stderr, the first time in a process."""
    print(printable(line), file=sys.stderr)

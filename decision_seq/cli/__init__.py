"""The command line: one command, one function."""

from decision_seq.cli.main import main

__all__ = ["main"]

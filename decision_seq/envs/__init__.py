"""Environments by name, reference scores, and the behaviour policies of the embedded default."""

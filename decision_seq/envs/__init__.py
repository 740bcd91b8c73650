"""Environments by name, their reference scores, and the behaviour policies of the embedded default."""

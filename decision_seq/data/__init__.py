"""Datasets: sources, stores, windows. `from_episodes` takes episodes from Python code."""

from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.tools.library import from_episodes, import_dataset

__all__ = ["EpisodeStore", "from_episodes", "import_dataset", "open_store"]

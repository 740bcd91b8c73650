"""decision-seq: offline reinforcement learning with sequence models.

Trajectory datasets feed one shared sequence-agent interface; the backbone that mixes information
along time is a swappable part; evaluators roll the trained policies out in real environments.
"""

__version__ = "0.2.0"

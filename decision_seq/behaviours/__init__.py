"""Who plays when data are collected: embedded actors, scripted players, Stable-Baselines3."""

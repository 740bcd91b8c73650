"""Environments: by name, as many lanes stepped side by side, and with the references of scores."""

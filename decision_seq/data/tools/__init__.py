"""What people do to a dataset: collect, check, replay, import, export, list."""

"""Kinds of leaves, one file each."""

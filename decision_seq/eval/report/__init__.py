"""Rows as statistics, tables, figures and pages. Nothing here imports torch."""

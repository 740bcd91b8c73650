"""Agents x datasets x seeds: the matrix, who does which job, what is done already."""

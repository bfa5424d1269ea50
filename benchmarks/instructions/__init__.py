"""Counts of instructions per element: a check of speed without noise."""

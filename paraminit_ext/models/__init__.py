"""Initialisation of whole models: fills of existing code, keys by name, plans and checkpoints.

This package draws no numbers. They come from :mod:`paraminit_ext.init` and :func:`paraminit_ext.fill_many`.
"""

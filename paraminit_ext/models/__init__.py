"""Whole models: existing code filled by this package, keys by name, a model's initialisation as data.

Nothing here draws: every number comes from :mod:`paraminit_ext.init` and :func:`paraminit_ext.fill_many`.
"""

"""Checks of the package with other compilers, flags, versions and processors, on GPUs, and as wheels."""

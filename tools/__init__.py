"""Proofs that need other compilers, other flags or other processors than the package is built with."""

"""Benchmarks of fills against stock `torch.nn.init` and against a plain fill of the same tensor."""

"""`make prove`: what takes minutes to prove, step by step, each claim with a verdict."""

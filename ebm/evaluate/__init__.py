"""How good samples are, and what an energy is worth: estimators, each held against an exact answer."""

"""The doctor: how good a model's score is, what a sampler does with it at every step, what is wrong and what cures it."""

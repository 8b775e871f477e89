"""The doctor: what a model's score is worth, what a sampler does with it at every step, what is wrong and what cures it."""

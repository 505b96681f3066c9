"""A trial's folder and what is in it: files, events, checkpoints, result, comparison, its mirror."""

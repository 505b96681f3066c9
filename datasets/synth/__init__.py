"""Generated data sets: procedural, seeded, written in the published layouts of the real ones."""

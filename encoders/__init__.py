"""The systems under comparison behind one interface, and the loading of their published checkpoints."""

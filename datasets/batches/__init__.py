"""The node cache, tile sources, samplers, subsets, and preprocessing on the device."""

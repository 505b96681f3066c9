"""Raw files -> Zarr tile store -> node cache -> batches of raw integers, and their preparation on the device."""

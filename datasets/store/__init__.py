"""The tile store: its format, conversion, statistics, verification, locations."""

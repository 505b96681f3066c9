"""Encoder and decoder as one module, adapters, and what they cost."""

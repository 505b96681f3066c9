"""Readers of published layouts, archives, scenes and editions: raw files -> tiles."""

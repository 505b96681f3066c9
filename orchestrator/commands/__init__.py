"""The commands, one module a group; each imports heavy libraries only when it runs."""

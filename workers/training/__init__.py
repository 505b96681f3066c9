"""An attempt at a trial: epochs, evaluation, metrics, memory, pictures, summary."""

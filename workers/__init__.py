"""One trial: train, evaluate, checkpoint, record. Knows neither Ray nor MLflow."""

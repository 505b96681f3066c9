"""Many trials: plan, Ray Tune driver, MLflow, leaderboard and the command line."""

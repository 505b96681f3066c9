"""What came out: leaderboard, comparability, ranking, and MLflow kept in step with the trial folders."""

"""What a run leaves behind: metrics, checkpoints, a summary, a plot."""

"""What a run leaves for people besides its results: figures for metric trackers, traces, and samples to look at."""

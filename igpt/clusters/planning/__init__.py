"""What a run will cost on a cluster, before it costs anything: `forecast`."""

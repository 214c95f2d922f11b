"""The network: transformer, generation, interchange with other formats. No parallelism."""

"""Training: the loop, schedule, parallelism, checkpoints, throughput. Knows no run and no cluster.

    from igpt.training.loop import train

    outcome = train(config, model, data, rank=0, world_size=1, device="cpu", ...)

The configuration (`igpt.training.config`) needs no torch.
"""

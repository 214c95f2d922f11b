"""Runs on a Ray cluster: submitted by the Jobs SDK, trained by Ray Train.

config, client, backend   what the client needs; none imports Ray before it submits
driver                    the job's entrypoint: the supervisor of the run
fitting                   one attempt by Ray Train, of which are parts:
                          room, ranks, orphans, watch, verdict
rank, gauges              in each worker of Ray: the parent of one rank, and its figures
"""

"""Runs on a Ray cluster: submitted by the Jobs SDK, trained by Ray Train.

config, client, backend   what the client needs; none imports Ray before it submits
driver                    the job's entrypoint: the supervisor of the run
fitting, rank             one attempt: Ray Train's workers, each the parent of one rank
"""

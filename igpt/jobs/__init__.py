"""What can run: each job's typed configuration, its preparation at submission, and its entry.

The modules here import no torch; what a worker does stands in `igpt.jobs.entries` and is imported
by the worker alone.
"""

from igpt.jobs.base import Job, JobConfig, Preparation, Prepared, find_job, job_names

__all__ = ["Job", "JobConfig", "Preparation", "Prepared", "find_job", "job_names"]

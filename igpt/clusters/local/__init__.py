"""The cluster `local`: worker processes on this machine, behind a queue.

config.py      what a cluster file says
backend.py     starts supervisors, looks at them, cancels
supervisor.py  one a run: it outlives the client, waits for its turn, starts the workers
queue.py       whose turn it is
"""

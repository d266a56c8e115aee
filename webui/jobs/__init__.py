"""Start a playbook as a job, tail it, cancel it, take it up again after a restart.

A job is a folder, `<state>/jobs/<id>/`, and a process of its own, `spark-control run`, that holds the
folder's lock for as long as it lives. Nothing here keeps a job's truth in memory, so any number of web
processes and terminals can look at, follow and cancel the same jobs. The folder's files are described in
`folder.py`.
"""

from webui.jobs.catalogue import Operation, operations, validate
from webui.jobs.folder import STATUSES, UNFINISHED, project_folder, state_folder
from webui.jobs.job import Job
from webui.jobs.store import InvalidVariables, JobRunning, JobStore, UnknownOperation
from webui.jobs.view import JobView

__all__ = [
    "STATUSES",
    "UNFINISHED",
    "InvalidVariables",
    "Job",
    "JobRunning",
    "JobStore",
    "JobView",
    "Operation",
    "UnknownOperation",
    "operations",
    "project_folder",
    "state_folder",
    "validate",
]

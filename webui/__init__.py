"""The thin front of Spark Control: pages, a JSON twin and the jobs that run the playbooks."""

"""`vllm` in the lab's image: the simulated server of roles/demo_spark, in a real container of a real docker."""

import os
import sys

import lab_spark
import sim_host

sys.dont_write_bytecode = True
sim_host.Host = lab_spark.LabSpark
os.environ.setdefault(sim_host.ENV_CONTAINER, "lab")

import sim_vllm

sys.exit(sim_vllm.main(lab_spark.FOLDER, "vllm", sys.argv[1:]))

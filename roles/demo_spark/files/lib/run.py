"""Start one program of a simulated Spark: `run.py HOST_FOLDER PROGRAM ARGS…`.

Every program on a simulated Spark's PATH is a two-line shell script that ends here, so that the interpreter's path may
hold spaces and the programs' code is compiled once.
"""

import importlib
import sys

PROGRAMS = {
    "docker": "sim_docker",
    "nvidia-smi": "sim_nvidia",
    "loginctl": "sim_logind",
    "busctl": "sim_logind",
    "ssh": "sim_ssh",
    "scp": "sim_ssh",
    "vllm": "sim_vllm",
    "hostd": "sim_hostd",
    "hub": "sim_hub",
    "embeddings": "sim_embeddings",
}

if __name__ == "__main__":
    host_folder, program, *arguments = sys.argv[1:]
    sys.exit(importlib.import_module(PROGRAMS[program]).main(host_folder, program, arguments))

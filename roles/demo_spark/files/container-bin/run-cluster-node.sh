#!/usr/bin/env bash
# What the January image's PID 1 runs: a Ray node that blocks, under Ray's own name.
echo "Starting $2 node. Local node IP: $4"
echo "Ray runtime started."
exec -a "/usr/bin/python3 /usr/local/bin/ray start --block --node-ip-address $4" sleep infinity

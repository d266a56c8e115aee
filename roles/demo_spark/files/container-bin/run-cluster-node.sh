#!/bin/sh
# What the January image's PID 1 runs: a Ray node that blocks.
echo "Starting $2 node. Local node IP: $4"
echo "Ray runtime started."
exec sleep infinity

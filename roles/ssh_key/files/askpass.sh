#!/bin/sh
# What ssh runs to ask for a password (SSH_ASKPASS): the answer is in its environment, never on a command line.
printf '%s\n' "$SPARK_SSH_PASSWORD"

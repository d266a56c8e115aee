"""The lab: containers with a real sshd and a real dockerd inside that play Sparks. README.md says how."""

"""Thousands of rollout workers and one controller on one machine: the real members, sockets and files."""

"""What is optimised: advantages of a prompt group, per-token losses, and their configuration. Pure functions."""

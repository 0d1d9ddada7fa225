"""What a person runs: the `verst` command, recipe loading, the plan, local launch."""

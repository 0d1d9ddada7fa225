"""Tests on a real Slurm of six virtual nodes, which `slurm_cluster.SlurmCluster` starts on this one machine."""

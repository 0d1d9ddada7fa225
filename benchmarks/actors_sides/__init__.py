"""The two sides of benchmarks/actors.py: the same measurements, with Verst's actors and with Ray's."""

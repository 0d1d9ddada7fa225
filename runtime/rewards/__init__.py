"""Rewards: functions from a response to a number, by dotted path."""

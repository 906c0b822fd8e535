"""Starts a real server on the candidate model and asks it real requests."""

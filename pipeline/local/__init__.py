"""Runs the pipeline on this machine, and records what a run was."""

"""Publishes a blessed model as the next version of the served directory."""

"""Plots as inline SVG. Every function takes plain data."""

"""Baselines and the measurements that compare them with CSMF. Nothing here is served."""

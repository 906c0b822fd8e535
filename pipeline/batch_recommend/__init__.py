"""Lists for many users at once: `csmf batch-recommend`, on Beam."""

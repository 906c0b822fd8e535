"""`csmf bench costs`: what one event, item, id or parameter costs, for `docs/scaling.md`."""

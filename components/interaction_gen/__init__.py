"""InteractionGen: logs, catalogue and users in; timelines and catalogue examples out."""

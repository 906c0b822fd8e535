"""`report.html`: one page about one run that opens without a network."""

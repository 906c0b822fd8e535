"""`csmf explore`: one page on which to try a served model."""

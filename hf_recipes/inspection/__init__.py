"""A report on the rows of a run, before it is trained."""

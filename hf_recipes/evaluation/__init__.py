"""Methods of evaluation, and their reports; answering and scoring the rows of a file."""

"""Pages in the browser, on this machine only."""

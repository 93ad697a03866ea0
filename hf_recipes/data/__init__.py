"""Records, schemas, tokens and the ledger of what became of every row."""

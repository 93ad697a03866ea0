"""The training stages and the skeleton that they share."""

"""What every part builds on."""

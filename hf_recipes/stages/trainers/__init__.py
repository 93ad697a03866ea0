"""TRL's trainers and ours, with what their stages need of them."""

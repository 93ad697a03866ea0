"""What a run is going to learn, looked at before it is trained."""

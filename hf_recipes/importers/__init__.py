"""Raw exports of platforms, made into conversations to train on."""

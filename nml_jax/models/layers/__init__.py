"""Parts that the encoders share."""

"""What stands around a backbone: tokens, and encoders of frames."""

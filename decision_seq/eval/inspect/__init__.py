"""What a trained agent looks back at."""

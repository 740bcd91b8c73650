"""Q and V of what the data do, fitted before training and frozen, and what they add to a loss."""

"""What SendEvent does: turns that run on their own, and readers that follow them."""

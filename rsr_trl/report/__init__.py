"""What people look at: one self-contained page and the terminal tables."""

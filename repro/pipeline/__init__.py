"""What a notebook writes to, and what runs the notebooks."""

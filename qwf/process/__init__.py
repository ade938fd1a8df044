"""What one process is: by what it is known elsewhere, what it does regularly, and how it ends."""

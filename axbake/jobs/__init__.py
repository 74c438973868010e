"""What every job has: an identity that decides whether it runs, a frame around its work, a record of it, lines on the screen."""

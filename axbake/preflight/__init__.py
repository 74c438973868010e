"""What can be known of a compile before it starts: `verdict` gathers it, the other modules each check one thing."""

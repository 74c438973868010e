"""The program that compiles, as a command: how it is started and ended, what it says, and what its failures mean."""

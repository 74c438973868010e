"""Pictures drawn on the host: the reference, the compiled models' and what each costs; schedules and prompts that they share.

What also draws on the board is in `axbake.runtime`.
"""

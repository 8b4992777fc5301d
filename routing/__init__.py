"""Routes for every core: announcements, speaker, BFD, placement (comes with its own issue). Imports nothing of ours."""

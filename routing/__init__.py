"""Routes for every core: announcements, speaker, BFD. Empty so far: steering is somebody else's. Imports nothing of ours."""

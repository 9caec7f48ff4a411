"""A pilot: ways to choose trajectories tried small against a random choice, before anybody trains big."""

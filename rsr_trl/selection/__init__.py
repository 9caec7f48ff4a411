"""Choosing with scores that are already there: trajectories, teachers. Nothing here runs a model by itself."""

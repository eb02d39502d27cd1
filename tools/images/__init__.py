"""Builds the images of docker/ from an imported base image and runs them: ``make docker-test``."""

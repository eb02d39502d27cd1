"""One training over a SuperLink: what is submitted, what its ServerApp does, how the submitter follows it."""

"""Numbers to probabilities: every model of the course, each in its paper's form."""

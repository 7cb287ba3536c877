"""The course: each lesson is one script that derives, builds, checks, trains and shows."""

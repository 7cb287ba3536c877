"""Invented worlds whose answers are known exactly. They know no model."""

"""Attacks that look for the nearest adversarial point."""

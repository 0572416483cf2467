"""Models and images that a user brings: loaded, checked, evaluated."""

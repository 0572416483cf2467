"""What is measured for two or more studies."""
